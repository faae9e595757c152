// Numbers: loads, stores and conversions.
//
// All rounding is explicit: compiled with -fmad=false, with every FMA written out and no library functions, so that the
// same source gives the same bits on a GPU and, in the tests, on a CPU. CuPy compiles with -ftz=true, under which
// float32 operations flush subnormals to 0. Where that could matter, the operation is written in PTX, which -ftz=true
// does not affect: maximum, fused, minus, as_double, as_float, and functions made of them.

typedef long long Index;

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

typedef LSM_X X;
typedef LSM_Y Y;

template <int n_bytes> struct Computed { typedef float type; };
template <> struct Computed<8> { typedef double type; };
typedef Computed<(sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y))>::type Number; // the type of the arithmetic

#define INLINE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
// The body of a function that is one instruction.
#define PTX(type, result, text, ...) { type d; asm(text : result(d) : __VA_ARGS__); return d; }

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
INLINE float fused(float a, float b, float c) PTX(float, "=f", "fma.rn.f32 %0, %1, %2, %3;", "f"(a), "f"(b), "f"(c))
INLINE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
INLINE float maximum(float a, float b) PTX(float, "=f", "max.f32 %0, %1, %2;", "f"(a), "f"(b))
INLINE double as_double(float x) PTX(double, "=d", "cvt.f64.f32 %0, %1;", "f"(x))
INLINE float as_float(double x) PTX(float, "=f", "cvt.rn.f32.f64 %0, %1;", "d"(x))
INLINE float from_half(unsigned short bits) PTX(float, "=f", "cvt.f32.f16 %0, %1;", "h"(bits))
INLINE unsigned short to_half(float x) PTX(unsigned short, "=h", "cvt.rn.f16.f32 %0, %1;", "f"(x))
#if __CUDA_ARCH__ >= 800
INLINE unsigned to_bfloat16_pair(float low, float high)
    PTX(unsigned, "=r", "cvt.rn.bf16x2.f32 %0, %1, %2;", "f"(high), "f"(low))
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

INLINE double maximum(double a, double b) { return a > b || !(b == b) ? a : b; } // ignores one NaN

// The maximum; propagates NaN.
INLINE double higher(double a, double b) { return b > a || !(b == b) ? b : a; }
#if __CUDA_ARCH__ >= 800
INLINE float higher(float a, float b) PTX(float, "=f", "max.NaN.f32 %0, %1, %2;", "f"(a), "f"(b))
#else
INLINE float higher(float a, float b) { return b > a || !(b == b) ? b : a; }
#endif
template <int n> INLINE Number highest_of(const Number (&y)[n])
{
    Number highest = y[0];
    UNROLL for (int j = 1; j < n; j++)
        highest = higher(highest, y[j]);
    return highest;
}

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

// The maximum of each half of two 16-bit pairs; ignores one NaN.
#if defined(LSM_ON_CPU)
#define LSM_HAS_PAIRS
template <class T> INLINE unsigned maximum_pair(unsigned a, unsigned b, T)
{
    unsigned to = 0;
    for (int i = 0; i < 32; i += 16) {
        T of_a = {(unsigned short)(a >> i)}, of_b = {(unsigned short)(b >> i)};
        float x = widen(of_a), y = widen(of_b);
        to |= (unsigned)(x > y || !(y == y) ? of_a : of_b).bits << i;
    }
    return to;
}
#elif __CUDA_ARCH__ >= 800
#define LSM_HAS_PAIRS
INLINE unsigned maximum_pair(unsigned a, unsigned b, float16)
    PTX(unsigned, "=r", "max.f16x2 %0, %1, %2;", "r"(a), "r"(b))
INLINE unsigned maximum_pair(unsigned a, unsigned b, bfloat16)
    PTX(unsigned, "=r", "max.bf16x2 %0, %1, %2;", "r"(a), "r"(b))
#endif

// For a 16-bit result: a float that rounds to the same 16 bits as x. It is rounded to odd, to avoid creating ties.
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

template <class T> struct Of; // -inf, by its bits
template <> struct Of<float16> { static INLINE float16 low() { float16 x = {0xfc00}; return x; } };
template <> struct Of<bfloat16> { static INLINE bfloat16 low() { bfloat16 x = {0xff80}; return x; } };
template <> struct Of<float> { static INLINE float low() { return __uint_as_float(0xff800000u); } };
template <> struct Of<double> { static INLINE double low() { return bits_to_double(0xfff0000000000000ull); } };
INLINE Number minus_infinity() { return Of<Number>::low(); }
INLINE double not_a_number() { return bits_to_double(0x7ff8000000000000ull); }
INLINE bool is_finite(double x) { return (x < 0 ? -x : x) < bits_to_double(0x7ff0000000000000ull); }
