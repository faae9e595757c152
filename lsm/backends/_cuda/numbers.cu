// Numbers: how they are read, written and converted, their exponential and their logarithm.
//
// Everything rounds as it stands here: compiled with -fmad=false, every FMA by name, no function of any library. So the
// same source gives the same bits on a GPU and, in the tests, on a CPU. CuPy compiles with -ftz=true, under which
// float32 operations take subnormal numbers for 0. Where one may matter, the operation is written in PTX, which
// -ftz=true does not reach: maximum, fused, minus, as_double, as_float and what is made of them.

typedef long long Index;

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

typedef LSM_X X;
typedef LSM_Y Y;

template <int n_bytes> struct Computed { typedef float type; };
template <> struct Computed<8> { typedef double type; };
typedef Computed<(sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y))>::type Number; // what is computed in

#define INLINE __device__ __forceinline__

#ifdef LSM_ON_CPU
INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
INLINE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
INLINE float maximum(float a, float b) { return a > b || !(b == b) ? a : b; }
INLINE double as_double(float x) { return x; }
INLINE float as_float(double x) { return (float)x; }
INLINE float from_half(unsigned short bits) { return lsm_from_half(bits); }
INLINE unsigned short to_half(float x) { return lsm_to_half(x); }
INLINE unsigned to_bfloat16_pair(float low, float high) { return lsm_to_bfloat16(low) | lsm_to_bfloat16(high) << 16; }
#else
INLINE float fused(float a, float b, float c)
{
    float d;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
    return d;
}
INLINE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
INLINE float maximum(float a, float b)
{
    float d;
    asm("max.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}
INLINE double as_double(float x)
{
    double d;
    asm("cvt.f64.f32 %0, %1;" : "=d"(d) : "f"(x));
    return d;
}
INLINE float as_float(double x)
{
    float d;
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(d) : "d"(x));
    return d;
}
INLINE float from_half(unsigned short bits)
{
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(bits));
    return d;
}
INLINE unsigned short to_half(float x)
{
    unsigned short d;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(x));
    return d;
}
#if __CUDA_ARCH__ >= 800
INLINE unsigned to_bfloat16_pair(float low, float high)
{
    unsigned d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
#else
INLINE unsigned to_bfloat16_bits(float x)
{
    unsigned bits = __float_as_uint(x);
    bits = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    return bits >> 16;
}
INLINE unsigned to_bfloat16_pair(float low, float high)
{
    return to_bfloat16_bits(low) | to_bfloat16_bits(high) << 16;
}
#endif
#endif

INLINE double maximum(double a, double b) { return a > b || !(b == b) ? a : b; }
INLINE float minus(float a, float b) { return fused(b, -1.0f, a); }
INLINE double minus(double a, double b) { return a - b; }
INLINE double as_double(double x) { return x; }
INLINE double bits_to_double(unsigned long long bits) { return __longlong_as_double((long long)bits); }

INLINE void set(float &to, double x) { to = as_float(x); }
INLINE void set(double &to, double x) { to = x; }
INLINE Number number(double x)
{
    Number y;
    set(y, x);
    return y;
}

INLINE float widen(float16 x) { return from_half(x.bits); }
INLINE float widen(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE void set(float &to, float x) { to = x; }
INLINE void set(double &to, float x) { to = as_double(x); }
template <class T> INLINE Number load(T x)
{
    Number y;
    set(y, widen(x));
    return y;
}

// For a result of 16 bits: a float of which the rounding to 16 bits is that of x. That is rounded to odd, so that no
// number is rounded to a tie.
INLINE float before_rounding(float x) { return x; }
INLINE float before_rounding(double x)
{
    float y = as_float(x);
    double back = as_double(y);
    unsigned bits = __float_as_uint(y);
    if (back == back && back != x && !(bits & 1u))
        bits += (back < 0 ? -back : back) < (x < 0 ? -x : x) ? 1u : ~0u;
    return __uint_as_float(bits);
}
INLINE void set(float16 &to, Number x) { to.bits = to_half(before_rounding(x)); }
INLINE void set(bfloat16 &to, Number x) { to.bits = (unsigned short)to_bfloat16_pair(before_rounding(x), 0); }

template <class T> struct Of; // the bits of -inf and NaN
template <> struct Of<float16> { static INLINE float16 low() { float16 x = {0xfc00}; return x; } };
template <> struct Of<bfloat16> { static INLINE bfloat16 low() { bfloat16 x = {0xff80}; return x; } };
template <> struct Of<float> { static INLINE float low() { return __uint_as_float(0xff800000u); } };
template <> struct Of<double> { static INLINE double low() { return bits_to_double(0xfff0000000000000ull); } };
INLINE Number minus_infinity() { return Of<Number>::low(); }
INLINE double not_a_number() { return bits_to_double(0x7ff8000000000000ull); }
INLINE bool is_finite(double x) { return (x < 0 ? -x : x) < bits_to_double(0x7ff0000000000000ull); }

// -- memory: n consecutive elements of one thread, in pieces of up to 16 bytes --------------------------------------

template <int n_bytes> struct Piece;
template <> struct Piece<16> { typedef uint4 type; };
template <> struct Piece<8> { typedef uint2 type; };
template <> struct Piece<4> { typedef unsigned type; };

template <int n, class T> struct Pieces {
    static const int n_bytes = n * (int)sizeof(T) < 16 ? n * (int)sizeof(T) : 16;
    typedef typename Piece<n_bytes>::type type;
    static const int count = n * (int)sizeof(T) / n_bytes;
    static INLINE bool fit(const T *at) { return (unsigned long long)at % n_bytes == 0; }
};

// What a thread holds: n elements, two of 16 bits in a register.
template <int n, class T, int size = sizeof(T)> struct Held {
    T x[n];
    INLINE T at(int i) const { return x[i]; }
    INLINE void put(int i, T value) { x[i] = value; }
};
template <int n, class T> struct Held<n, T, 2> {
    unsigned words[n / 2];
    INLINE T at(int i) const
    {
        T value = {(unsigned short)(words[i / 2] >> 16 * (i % 2))};
        return value;
    }
    INLINE void put(int i, T value) // in order
    {
        words[i / 2] = i % 2 ? words[i / 2] | (unsigned)value.bits << 16 : value.bits;
    }
};

// Let the compiler forget what it has made of 16 bits: it would rather keep all the numbers than widen them again, and
// has not the registers for it.
template <int n, class T, int size> INLINE void forget(Held<n, T, size> &) {}
template <int n, class T> INLINE void forget(Held<n, T, 2> &held)
{
#ifndef LSM_ON_CPU
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        asm volatile("" : "+r"(held.words[i]));
#endif
}

template <int n, class T> union Both { // what is held, and how it lies in memory
    typename Pieces<n, T>::type piece[Pieces<n, T>::count];
    Held<n, T> held;
    INLINE Both() {}
};

// Read x[0] to x[n - 1] of which `valid` exist, the rest is `filler`. Which thread has which element does not depend
// on the alignment: where pieces do not fit, the same elements are read one by one.
template <int n, class T> INLINE void read(Held<n, T> &to, const T *x, int valid, bool fits, T filler)
{
    typedef Pieces<n, T> P;
    if (fits && valid >= n) {
        Both<n, T> both;
#pragma unroll
        for (int i = 0; i < P::count; i++)
            both.piece[i] = reinterpret_cast<const typename P::type *>(x)[i];
        to = both.held;
    } else {
#pragma unroll
        for (int i = 0; i < n; i++)
            to.put(i, i < valid ? x[i] : filler);
    }
}

// Write where pieces fit.
template <int n, class T> INLINE void put_whole(T *to, const Held<n, T> &held)
{
    typedef Pieces<n, T> P;
    Both<n, T> both;
    both.held = held;
#pragma unroll
    for (int i = 0; i < P::count; i++)
        reinterpret_cast<typename P::type *>(to)[i] = both.piece[i];
}

template <int n, class T, int size> INLINE void round_all(Held<n, T, size> &to, const Number (&y)[n])
{
#pragma unroll
    for (int i = 0; i < n; i++) {
        T value;
        set(value, y[i]);
        to.put(i, value);
    }
}
template <int n> INLINE void round_all(Held<n, bfloat16, 2> &to, const Number (&y)[n]) // two by one instruction
{
#pragma unroll
    for (int i = 0; i < n; i += 2)
        to.words[i / 2] = to_bfloat16_pair(before_rounding(y[i]), before_rounding(y[i + 1]));
}

// Round, and write likewise.
template <int n, class T> INLINE void write(T *to, const Number (&y)[n], int valid, bool fits)
{
    Held<n, T> rounded;
    round_all(rounded, y);
    if (fits && valid >= n) {
        put_whole(to, rounded);
    } else {
#pragma unroll
        for (int i = 0; i < n; i++)
            if (i < valid)
                to[i] = rounded.at(i);
    }
}

// -- the exponential and the logarithm: docs/numerics.md has the reduction, the constants and the bounds -------------

#define LN2_ERROR 2.7478434e-9            /* of ln 2 rounded to float */
#define LN2_HI 6.93147180369123816490e-01 /* ln 2 with 21 zeros at the end: n * LN2_HI is exact */
#define LN2_LO 1.90821492927058770002e-10
#define MAGIC_FLOAT 12582912.0f           /* 1.5 * 2**23: adding it rounds to an integer, which its low bits are */
#define MAGIC_DOUBLE 6755399441055744.0   /* 1.5 * 2**52 */

INLINE float power_of_two(float t) { return __uint_as_float(__float_as_uint(t) << 23); }
INLINE double power_of_two(double t) { return bits_to_double((unsigned long long)__double_as_longlong(t) << 52); }
INLINE float power_of_two_f(int n) { return __uint_as_float((unsigned)(n + 127) << 23); }
INLINE double power_of_two_d(int n) { return bits_to_double((unsigned long long)(n + 1023) << 52); }

// exp(r) - 1 for |r| <= ln(2) / 2
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
    static INLINE double magic() { return 12582912.0 + 127 + 100; } // the bias: sums are 2**100 too large
    static INLINE double floor() { return -156.5; }                 // -(126 + 100) ln 2, rounded up
    static INLINE double unbias() { return 7.888609052210118e-31; } // 2**-100
    static INLINE float limit() { return 88.0f; }                   // exp(y) is near the end of the range
};
template <> struct Constants<double> {
    static INLINE double magic() { return MAGIC_DOUBLE + 1023 + 900; }
    static INLINE double floor() { return -1332.0; }
    static INLINE double unbias() { return bits_to_double((1023ull - 900) << 52); }
    static INLINE double limit() { return 709.0; }
};

// How to sum exponentials of numbers up to m: x is reduced as it is, and exp(-m) brought in at the end. So the terms of
// one x differ by powers of two for different m, and by no digit.
struct Shift {
    Number m;
    Number less;  // h: is subtracted first, 0, or m where m is so large that x - m is exact for all that count
    Number magic; // and in it the power of two nearest to exp(h - m)
    Number floor, top; // of x - h
};

INLINE Shift shift_to(Number m)
{
    Shift to;
    to.m = m > minus_infinity() ? m : 0; // all that m is of may be -inf
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

// exp(x - h) * 2**(bias - power): 0 far below, and for the largest, which is left out. A NaN stays NaN.
INLINE Number exp_below(Number x, const Shift &to)
{
    Number v = x - to.less;
    Number t = fused(v, (Number)1.4426950408889634, to.magic);
    Number scale = power_of_two(t);
    Number p = fused(scale, expm1_reduced(reduced(v, t - to.magic)), scale);
    return v < to.floor || v == to.top ? (Number)0 : p;
}
INLINE bool is_largest(Number x, const Shift &to) { return x - to.less == to.top; }

// The exponent e of x, a normal double: 1/2 <= |x| / 2**e < 1; some number for any other.
INLINE int exponent_of(double x) { return (int)((unsigned long long)__double_as_longlong(x) >> 52 & 0x7ff) - 1022; }

// The sum of exp_below as one of exp(x - m).
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

// exp(d + e) for d <= 0 and a tiny e; also where it is subnormal.
INLINE double exp_of_difference(double d, double e)
{
    double n = fused(d, 1.4426950408889634, MAGIC_DOUBLE) - MAGIC_DOUBLE;
    double p = 1 + expm1_reduced(reduced(d, n));
    int k = (int)n;
    return d > -1000 ? fused(p, e, p) * power_of_two_d(k / 2) * power_of_two_d(k - k / 2) : d <= -1000 ? 0 : d;
}

// log(1 + s) for s >= 0; NaN for NaN. As in fdlibm's log1p.c.
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
