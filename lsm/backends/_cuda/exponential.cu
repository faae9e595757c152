// The exponential and the logarithm. docs/numerics.md derives the reduction, the constants and the bounds.

#define LN2_ERROR 2.7478434e-9            /* relative, of ln 2 as float */
#define LN2_HI 6.93147180369123816490e-01 /* ln 2 with its low 21 bits zero: n * LN2_HI is exact */
#define LN2_LO 1.90821492927058770002e-10
#define MAGIC_FLOAT 12582912.0f           /* 1.5 * 2**23: adding it rounds to an integer, in the low bits */
#define MAGIC_DOUBLE 6755399441055744.0   /* 1.5 * 2**52 */

INLINE float power_of_two(float t) { return __uint_as_float(__float_as_uint(t) << 23); }
INLINE double power_of_two(double t) { return bits_to_double((unsigned long long)__double_as_longlong(t) << 52); }
INLINE float power_of_two_f(int n) { return __uint_as_float((unsigned)(n + 127) << 23); }
INLINE double power_of_two_d(int n) { return bits_to_double((unsigned long long)(n + 1023) << 52); }

// exp(r) - 1 for |r| <= ln(2) / 2.
INLINE float expm1_reduced(float r)
{
    float p = 0.001381446490995586f;
    p = fused(p, r, 0.008368780836462975f);
    p = fused(p, r, 0.04166839271783829f);
    p = fused(p, r, 0.1666651964187622f);
    p = fused(p, r, 0.4999999403953552f);
    return fused(r * r, p, r);
}
INLINE double expm1_reduced(double r)
{
    double p = 2.5000589571617807e-08;
    p = fused(p, r, 2.7630380840201015e-07);
    p = fused(p, r, 2.7557585389651476e-06);
    p = fused(p, r, 2.480149275472975e-05);
    p = fused(p, r, 0.0001984126950692898);
    p = fused(p, r, 0.0013888888943932496);
    p = fused(p, r, 0.008333333333494635);
    p = fused(p, r, 0.04166666666652914);
    p = fused(p, r, 0.1666666666666641);
    p = fused(p, r, 0.5000000000000011);
    return fused(r * r, p, r);
}

template <class T> struct Constants;
template <> struct Constants<float> {
    static INLINE double magic() { return 12582912.0 + 127 + 100; } // with the bias: sums are scaled by 2**100
    static INLINE double floor() { return -156.5; }                 // -(126 + 100) ln 2, rounded up
    static INLINE double unbias() { return 7.888609052210118e-31; } // 2**-100
    static INLINE float limit() { return 88.0f; }                   // exp(y) is about to overflow
};
template <> struct Constants<double> {
    static INLINE double magic() { return MAGIC_DOUBLE + 1023 + 900; }
    static INLINE double floor() { return -1332.0; }
    static INLINE double unbias() { return bits_to_double((1023ull - 900) << 52); }
    static INLINE double limit() { return 709.0; }
};

// The parameters for summing exponentials of numbers up to m. x is reduced as it is, and exp(-m) applied to the sum, so
// for different m the terms of one x differ by exact powers of two.
struct Shift {
    Number m;
    Number less;  // h, subtracted first: 0, or m if m is so large that x - m is exact for every x that matters
    Number magic; // includes the power of two nearest to exp(h - m)
    Number floor, top; // of x - h
};

INLINE Shift shift_to(Number m)
{
    Shift to;
    to.m = m > minus_infinity() ? m : 0; // all classes may be -inf
    bool is_far = !((to.m < 0 ? -to.m : to.m) < 8192);
    to.less = is_far ? to.m : 0;
    to.top = is_far ? to.m - to.m : to.m; // NaN for inf
    double top = as_double(to.top);
    double power = fused(top, 1.4426950408889634, MAGIC_DOUBLE) - MAGIC_DOUBLE;
    to.magic = number(Constants<Number>::magic() - power);
    to.floor = number(top + Constants<Number>::floor());
    return to;
}

INLINE float reduced(float v, float n) { return fused(n, -0.693147182464599609375f, v); }
INLINE double reduced(double v, double n) { return fused(n, -LN2_LO, fused(n, -LN2_HI, v)); }

// exp(x - h) * 2**(bias - power); 0 far below the maximum, and at the maximum, which is counted. Propagates NaN.
INLINE Number exp_below(Number x, const Shift &to)
{
    Number v = x - to.less;
    Number t = fused(v, (Number)1.4426950408889634, to.magic);
    Number scale = power_of_two(t);
    Number p = fused(scale, expm1_reduced(reduced(v, t - to.magic)), scale);
    return v < to.floor || v == to.top ? (Number)0 : p;
}
INLINE bool is_largest(Number x, const Shift &to) { return x - to.less == to.top; }

// The exponent e of a normal double x, with 1/2 <= |x| / 2**e < 1; unspecified for any other x.
INLINE int exponent_of(double x) { return (int)((unsigned long long)__double_as_longlong(x) >> 52 & 0x7ff) - 1022; }

// Turn a sum of exp_below into one of exp(x - m).
INLINE double finish(double total, double error, const Shift &of)
{
    double v = as_double(of.top), power = Constants<Number>::magic() - as_double(of.magic);
    double w = fused(power, LN2_LO, fused(power, LN2_HI, -v));
    if (sizeof(Number) == 4)
        w = fused(v, LN2_ERROR, w);
    double s = (total + (error + total * expm1_reduced(w))) * Constants<Number>::unbias();
    if (sizeof(Number) == 4) { // the terms were exp(d * (1 - LN2_ERROR)); the mean of d is nearly log(s)
        double mean = exponent_of(s) * 0.6931471805599453;
        s = fused(s, LN2_ERROR * (mean < 0 ? mean : 0), s);
    }
    return s;
}

// exp(d + e) for d <= 0 and a tiny e, including subnormal results.
INLINE double exp_of_difference(double d, double e)
{
    double n = fused(d, 1.4426950408889634, MAGIC_DOUBLE) - MAGIC_DOUBLE;
    double p = 1 + expm1_reduced(reduced(d, n));
    int k = (int)n;
    return d > -1000 ? fused(p, e, p) * power_of_two_d(k / 2) * power_of_two_d(k - k / 2) : d <= -1000 ? 0 : d;
}

// log(1 + s) for s >= 0, as in fdlibm's log1p.c. Propagates NaN.
INLINE double log1p_of(double s)
{
    double u = 1 + s;
    double v = u - 1;
    double e = (1 - (u - v)) + (s - v);
    unsigned long long bits = (unsigned long long)__double_as_longlong(u);
    unsigned long long above = bits - 0x3fe6a09e667f3bcdull;
    double f = bits_to_double(bits - (above & 0xfff0000000000000ull));
    double k = bits_to_double(above >> 52 | 0x4330000000000000ull) - 4503599627370496.0;
    double g = f - 1;
    double r = g / (2 + g);
    double z = r * r;
    double half = 0.5 * g * g;
    double p = 1.479819860511658591e-01;
    p = fused(p, z, 1.531383769920937332e-01);
    p = fused(p, z, 1.818357216161805012e-01);
    p = fused(p, z, 2.222219843214978396e-01);
    p = fused(p, z, 2.857142874366239149e-01);
    p = fused(p, z, 3.999999999940941908e-01);
    p = fused(p, z, 6.666666666666735130e-01);
    double tail = half - fused(r, fused(p, z, half), fused(k, LN2_LO, e / u));
    return fused(k, LN2_HI, -(tail - g));
}
