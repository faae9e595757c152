// The gradient of log_softmax: dy - exp(y) * S for each class, with S the sum of dy.

// The parameters of the gradient: S = high + low, and S = fraction * 2**exponent.
struct Total {
    Number high, low, fraction, plain_to; // y <= plain_to take gradient_of_plain; NaN if none do
    int exponent;
    bool is_moderate;
};

// A plain S is 0 or has an exponent in [least, most). Then, for y <= top, exp(y) * 2**bias and S * 2**-bias are normal,
// except where exp(y) * S changes no dy: y < floor, which may be replaced by floor.
template <class T> struct Plain;
template <> struct Plain<float> {
    static const int bias = 64, least = -60, most = 36;
    static INLINE float floor() { return -131; }
    static INLINE float top() { return 40; }
    static INLINE float magic() { return MAGIC_FLOAT + 127 + bias; }
    static INLINE float power(int n) { return power_of_two_f(n); }
};
template <> struct Plain<double> {
    static const int bias = 512, least = -500, most = 400;
    static INLINE double floor() { return -1062; }
    static INLINE double top() { return 350; }
    static INLINE double magic() { return MAGIC_DOUBLE + 1023 + bias; }
    static INLINE double power(int n) { return power_of_two_d(n); }
};
typedef Plain<Number> OfPlain;

INLINE Total total_of(Sum of, bool is_smaller, bool is_bad)
{
    Total to;
    double s = is_bad ? not_a_number() : of.total + of.error;
    to.exponent = exponent_of(s);
    to.high = number(s);
    to.low = number(sizeof(Number) == 8 ? (of.total - s) + of.error : s - as_double(to.high));
    bool is_plain = !is_smaller && (s == 0 || (to.exponent >= OfPlain::least && to.exponent < OfPlain::most));
    to.plain_to = is_plain ? OfPlain::top() : number(not_a_number());
    if (!is_finite(s)) {
        s = not_a_number();
        to.exponent = 0;
    } else if (to.exponent == -1022) {
        s *= power_of_two_d(1022); // 0 or subnormal, exactly
    } else {
        s = bits_to_double(((unsigned long long)__double_as_longlong(s) & 0x800fffffffffffffull) | 1022ull << 52);
    }
    to.fraction = number(s);
    to.is_moderate = !is_smaller && to.exponent < (sizeof(Number) == 4 ? 120 : 1000);
    to.exponent += is_smaller ? 64 : 0;
    return to;
}

// dy - exp(y) * S, as (dy - S) - expm1(y) * S if y > -ln 2, with one rounding of product and difference. Both functions
// below give the same bits, so either may compute a class.
INLINE bool is_near(Number y) { return y > (Number)-0.6931471805599453; }
INLINE Number rest_of(Number v, Number n) // v minus n ln 2
{
    return sizeof(Number) == 4 ? fused(n, (Number)2.1219444005469058e-4, fused(n, (Number)-0.693359375, v))
                               : fused(n, (Number)-LN2_LO, fused(n, (Number)-LN2_HI, v));
}

// For a plain S and y <= top; `factor` is S * -2**-bias.
INLINE Number gradient_of_plain(Number dy, Number y, const Total &s, Number factor)
{
    Number v = maximum(y, OfPlain::floor());
    Number t = fused(v, (Number)1.4426950408889634, OfPlain::magic());
    Number scale = power_of_two(t); // times 2**bias
    Number e = expm1_reduced(rest_of(v, t - OfPlain::magic()));
    bool near = is_near(y);
    e = fused(scale, e, scale - (near ? OfPlain::power(OfPlain::bias) : (Number)0));
    if (near)
        dy = minus(minus(dy, s.high), s.low);
    return fused(e, factor, dy);
}

// For any S and y. The power of two is split between the factors, so that neither overflows unless the product does.
INLINE int low_bits(float t) { return (int)(__float_as_uint(t) & 0x7fffffu) - 0x400000; }
INLINE int low_bits(double t) { return (int)__double_as_longlong(t); }
INLINE int within(int least, int k, int most) { return k < least ? least : k > most ? most : k; }

INLINE Number gradient_of_any(Number dy, Number y, const Total &s)
{
    const int most = sizeof(Number) == 4 ? 126 : 1022;
    const Number magic = sizeof(Number) == 4 ? (Number)MAGIC_FLOAT : (Number)MAGIC_DOUBLE;
    const Number floor = sizeof(Number) == 4 ? (Number)-400 : (Number)-4000; // negligible for any S
    Number v = y < floor ? floor : y;
    Number t = fused(v, (Number)1.4426950408889634, magic);
    Number e = expm1_reduced(rest_of(v, t - magic));
    int k = s.exponent;
    if (is_near(y) && s.is_moderate) {
        Number scale = OfPlain::power(low_bits(t));
        e = fused(scale, e, scale - 1);
        dy = minus(minus(dy, s.high), s.low);
    } else {
        e += 1;
        k += low_bits(t);
    }
    int of_s = within(1 - most, k, most), of_e = within(5 - most, k - of_s, most - 5);
    e = fused(e, OfPlain::power(of_e), (Number)0);
    return fused(e, s.fraction * -OfPlain::power(of_s), dy); // never subnormal: negation would flush it to 0
}

struct LogSoftmaxBackward : Terms {
    static const bool reads_two = true, limits_range = true;
    typedef Total Parameters;

    static INLINE Total parameters(const Part &of, bool is_nan) { return total_of(of.sum, of.is_smaller, is_nan); }

    // Whether the y make all of a frame NaN: exp(y) overflows, y is NaN, or all are -inf. `highest` is the maximum of
    // some of them, or NaN. The marks of parts of a frame are combined by bitwise or.
    static INLINE int marks_of(Number highest)
    {
        return (highest < Constants<Number>::limit() ? 0 : 1) | (highest == minus_infinity() ? 0 : 2);
    }
    static INLINE bool makes_nan(int marks) { return marks != 2; }

    // `highest` is an upper bound of the y.
    template <int n>
    static INLINE void results(Number (&dy)[n], const Number (&y)[n], const Total &s, Number highest)
    {
        if (highest <= s.plain_to) {
            Number factor = s.high * -OfPlain::power(-OfPlain::bias);
            UNROLL for (int j = 0; j < n; j++)
                dy[j] = gradient_of_plain(dy[j], y[j], s, factor);
        } else {
            UNROLL for (int j = 0; j < n; j++)
                dy[j] = gradient_of_any(dy[j], y[j], s);
        }
    }
};
