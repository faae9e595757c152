// y = x - c for each class, with c = m + log(sum of exp(x - m)).

struct Normaliser { Number high, low; }; // c, as two numbers

INLINE float rounded(double c, float) { return as_float(c); }
INLINE double rounded(double c, double) { return c; }

struct LogSoftmax : Exponentials {
    static const bool reads_two = false, limits_range = false;
    typedef Normaliser Parameters;

    static INLINE Normaliser parameters(const Whole &of, bool)
    {
        Normaliser c;
        double wide = as_double(of.m), log_sum = log1p_of(of.below + (double)(of.n_largest - 1));
        c.high = rounded(wide + log_sum, of.m);
        c.low = number((wide - as_double(c.high)) + log_sum);
        return c;
    }
    static INLINE Normaliser from_lane(Normaliser c, int lane, int n_lanes)
    {
        c.high = __shfl_sync(FULL_MASK, c.high, lane, n_lanes);
        c.low = __shfl_sync(FULL_MASK, c.low, lane, n_lanes);
        return c;
    }
    static INLINE Number result(Number x, Normaliser c) { return minus(minus(x, c.high), c.low); } // -inf stays -inf
};
