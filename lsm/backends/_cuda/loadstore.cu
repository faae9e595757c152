// Vector loads and stores: the n consecutive elements of a lane, in pieces of up to 16 bytes, at any alignment of the
// row.
//
// An element's lane depends on its index alone. Loads are aligned to the size of a piece. If a row starts `skew`
// elements after such a boundary, each lane loads `skew` elements early: its last `skew` elements are the next lane's
// first, and come from there by a shuffle. Stores work likewise; both ends of the row are stored element by element.

template <int n_bytes> struct Piece;
template <> struct Piece<16> { typedef uint4 type; };
template <> struct Piece<8> { typedef uint2 type; };
template <> struct Piece<4> { typedef unsigned type; };

template <int n, class T> struct Pieces {
    static const int n_bytes = n * (int)sizeof(T) < 16 ? n * (int)sizeof(T) : 16;
    typedef typename Piece<n_bytes>::type type;
    static const int count = n * (int)sizeof(T) / n_bytes;
    static const int n_of_one = n / count, n_words = n_bytes / 4;
    static INLINE int skew(const T *at) { return (int)((unsigned long long)at % n_bytes / sizeof(T)); }
};

// The n elements of a lane, two to a register for 16-bit types.
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
    INLINE void put(int i, T value) // in increasing order of i
    {
        words[i / 2] = i % 2 ? words[i / 2] | (unsigned)value.bits << 16 : value.bits;
    }
};

// Hide 16-bit values from the optimiser, which would otherwise keep the widened numbers instead of widening them again,
// and run out of registers.
template <int n, class T, int size> INLINE void forget(Held<n, T, size> &) {}
template <int n, class T> INLINE void forget(Held<n, T, 2> &held)
{
#ifndef LSM_ON_CPU
    UNROLL for (int i = 0; i < n / 2; i++)
        asm volatile("" : "+r"(held.words[i]));
#endif
}

template <int n, class T> union Both { // the elements, and their layout in memory
    static const int n_words = n * (int)sizeof(T) / 4;
    typename Pieces<n, T>::type piece[Pieces<n, T>::count];
    unsigned words[n_words];
    Held<n, T> held;
    INLINE Both() {}
};

// Load or store whole pieces at x.
template <int n, class T> INLINE void get_whole(Held<n, T> &to, const T *x)
{
    Both<n, T> both;
    UNROLL for (int i = 0; i < Pieces<n, T>::count; i++)
        both.piece[i] = reinterpret_cast<const typename Pieces<n, T>::type *>(x)[i];
    to = both.held;
}
template <int n, class T> INLINE void put_whole(T *to, const Held<n, T> &held)
{
    Both<n, T> both;
    both.held = held;
    UNROLL for (int i = 0; i < Pieces<n, T>::count; i++)
        reinterpret_cast<typename Pieces<n, T>::type *>(to)[i] = both.piece[i];
}

// Pieces of which only x[first] to x[last - 1] exist; the rest is set to `filler`, or not written.
template <int n, class T> INLINE void get(Held<n, T> &to, const T *x, int first, int last, T filler)
{
    if (first <= 0 && last >= n) {
        get_whole(to, x);
    } else {
        UNROLL for (int i = 0; i < n; i++)
            to.put(i, i >= first && i < last ? x[i] : filler);
    }
}
template <int n, class T> INLINE void put(T *to, const Held<n, T> &held, int first, int last)
{
    if (first <= 0 && last >= n) {
        put_whole(to, held);
    } else {
        UNROLL for (int i = 0; i < n; i++)
            if (i >= first && i < last)
                to[i] = held.at(i);
    }
}

// The elements of `all` from position `by` on.
template <class T, int n_words, int n_all> INLINE void window(unsigned (&to)[n_words], unsigned (&all)[n_all], int by)
{
    const int n_bytes = by * (int)sizeof(T);
    if constexpr (n_all - n_words > 2) {
        UNROLL for (int i = 0; i < n_all - 2; i++)
            all[i] = n_bytes & 8 ? all[i + 2] : all[i];
    }
    if constexpr (n_all - n_words > 1 && sizeof(T) < 8) {
        UNROLL for (int i = 0; i < n_words + 1; i++)
            all[i] = n_bytes & 4 ? all[i + 1] : all[i];
    }
    UNROLL for (int i = 0; i < n_words; i++)
        to[i] = sizeof(T) == 2 ? __byte_perm(all[i], all[i + 1], n_bytes & 2 ? 0x5432 : 0x3210) : all[i];
}

// Tell the compiler that a value is the same in all lanes of a warp.
template <int n_lanes> INLINE int common(int x) { return n_lanes == 32 ? __shfl_sync(FULL_MASK, x, 0, 32) : x; }

template <int n_lanes> INLINE bool is_any(int skew) { return n_lanes == 32 ? skew != 0 : __any_sync(FULL_MASK, skew); }

// Load a lane's elements of a row, n_pieces times n that are n_lanes * n apart. *x is the first; x[first] to x[last -
// 1] exist, and possibly more on either side.
template <int n_lanes, int n, class T, int n_pieces>
INLINE void read(Held<n, T> (&to)[n_pieces], const T *x, int first, int last, T filler)
{
    typedef Pieces<n, T> P;
    typedef Both<n, T> B;
    const int lane = threadIdx.x % n_lanes, skew = common<n_lanes>(P::skew(x)), step = n_lanes * n;
    x -= skew;
    first += skew;
    last += skew;
    UNROLL for (int i = 0; i < n_pieces; i++)
        get(to[i], x + i * step, i ? 0 : first, last - i * step, filler); // only the first piece may precede the row
    if (!is_any<n_lanes>(skew))
        return;
    Both<P::n_of_one, T> behind; // the elements missing at the end of the last lane
    if (lane == 0)
        get(behind.held, x + n_pieces * step, 0, last - n_pieces * step, filler);
    UNROLL for (int i = 0; i < n_pieces; i++) {
        B own, next;
        own.held = to[i];
        if (i + 1 < n_pieces)
            next.held = to[i + 1];
        unsigned all[B::n_words + P::n_words];
        UNROLL for (int j = 0; j < B::n_words; j++)
            all[j] = own.words[j];
        UNROLL for (int j = 0; j < P::n_words; j++) {
            unsigned offered = lane ? own.words[j] : i + 1 < n_pieces ? next.words[j] : behind.words[j];
            all[B::n_words + j] = __shfl_sync(FULL_MASK, offered, lane + 1, n_lanes);
        }
        window<T>(own.words, all, skew);
        to[i] = own.held;
    }
}

template <int n, class T, int size> INLINE void round_all(Held<n, T, size> &to, const Number (&y)[n])
{
    UNROLL for (int i = 0; i < n; i++) {
        T value;
        set(value, y[i]);
        to.put(i, value);
    }
}
template <int n> INLINE void round_all(Held<n, bfloat16, 2> &to, const Number (&y)[n]) // two per instruction
{
    UNROLL for (int i = 0; i < n; i += 2)
        to.words[i / 2] = to_bfloat16_pair(before_rounding(y[i]), before_rounding(y[i + 1]));
}

// Rounds and stores a lane's elements of a row, in increasing order. `to` is the address of the first, and n_left is
// the number of elements of the row from there on.
template <int n_lanes, int n, class T> struct Writer {
    typedef Pieces<n, T> P;
    typedef Both<n, T> B;
    static const int step = n_lanes * n;
    T *to; // minus the skew
    int lane, skew, first, last;
    Both<P::n_of_one, T> before; // the last piece written

    INLINE Writer(T *at, int n_left) : lane(threadIdx.x % n_lanes), skew(common<n_lanes>(P::skew(at)))
    {
        // from the address: with the index, up to sm_90 the first piece would be stored word by word
        to = reinterpret_cast<T *>(reinterpret_cast<char *>(at) - (int)((unsigned long long)at % P::n_bytes));
        first = skew - lane * n;
        last = skew + n_left;
        UNROLL for (int j = 0; j < P::n_words; j++)
            before.words[j] = 0;
    }
    INLINE void write(int i, const Number (&y)[n])
    {
        B own;
        round_all(own.held, y);
        if (is_any<n_lanes>(skew)) {
            unsigned all[P::n_words + B::n_words];
            UNROLL for (int j = 0; j < P::n_words; j++) {
                if (j < (int)sizeof(T) / 4) { // skew is smaller: the first element is not used
                    all[j] = own.words[j];
                    continue;
                }
                unsigned mine = own.words[B::n_words - P::n_words + j];
                unsigned offered = lane == n_lanes - 1 ? before.words[j] : mine;
                all[j] = __shfl_sync(FULL_MASK, offered, lane + n_lanes - 1, n_lanes);
                before.words[j] = mine;
            }
            UNROLL for (int j = 0; j < B::n_words; j++)
                all[P::n_words + j] = own.words[j];
            if (n_lanes == 32 || skew)
                window<T>(own.words, all, P::n_of_one - skew);
        }
        put(to + i * step, own.held, i ? 0 : first, last - i * step);
    }
    INLINE void end(int n_pieces) // the remainder of the last lane
    {
        if (skew && lane == n_lanes - 1) {
            const int at = skew + (n_pieces - 1) * step + n - P::n_of_one;
            UNROLL for (int j = 0; j < P::n_of_one; j++)
                if (j >= P::n_of_one - skew && at + j < last)
                    to[at + j] = before.held.at(j);
        }
    }
};
