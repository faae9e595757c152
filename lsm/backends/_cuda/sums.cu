// Sums: the order in which every kernel adds the classes of a frame.
//
// The order is a tree that depends on the class index alone, so all kernels give the same bits. A leaf is 4 classes (2
// in double), a row 64 leaves, a slice 4 rows: 1024 classes, or 512. Leaves at the same position are added row by row.
// The 64 positions are folded: neighbours first (1 apart), then 2, 4, 8, 16 and 32 apart. Slices are rescaled to the
// maximum of the frame and folded likewise. Missing classes count as 0.

const int LEAF_CLASSES = sizeof(Number) == 4 ? 4 : 2;
const int ROW_CLASSES = 64 * LEAF_CLASSES;
const int SLICE_CLASSES = 4 * ROW_CLASSES;
const unsigned FULL_MASK = 0xffffffffu;

INLINE Index count_slices(Index n) { return (n + SLICE_CLASSES - 1) / SLICE_CLASSES; }

// A sum in double, with the rounding errors if the terms are double as well (Knuth's TwoSum).
struct Sum { double total, error; };

INLINE Sum nothing()
{
    Sum s = {0, 0};
    return s;
}
INLINE Sum plus(Sum a, Sum b)
{
    Sum s;
    s.total = a.total + b.total;
    s.error = 0;
    if (sizeof(Number) == 8) {
        double v = s.total - a.total;
        s.error = (a.error + b.error) + ((a.total - (s.total - v)) + (b.total - v));
    }
    return s;
}
INLINE Sum plus(Sum a, double b)
{
    Sum s = {b, 0};
    return plus(a, s);
}
INLINE Sum from_lane(Sum s, int distance)
{
    s.total = __shfl_xor_sync(FULL_MASK, s.total, distance);
    if (sizeof(Number) == 8)
        s.error = __shfl_xor_sync(FULL_MASK, s.error, distance);
    return s;
}

// A deep fold takes more registers, so fewer blocks fit a multiprocessor.
#ifdef LSM_DEPTH
const int FEWER_BLOCKS = LSM_DEPTH > 12 ? 1 : 0;
#endif

// The fold of up to 2**(depth - 1) successive sums: sums of equal height are added, like carries of a binary counter.
template <int depth> struct Fold {
    Sum waiting[depth];
    unsigned n;
    INLINE Fold() : n(0) {}
    INLINE void push(Sum s)
    {
        bool carries = true;
        UNROLL for (int height = 0; height < depth; height++) {
            if (carries) {
                if (n >> height & 1u) {
                    s = plus(waiting[height], s);
                } else {
                    waiting[height] = s;
                    carries = false;
                }
            }
        }
        n++;
    }
    INLINE Sum result() const
    {
        Sum s = nothing();
        UNROLL for (int height = 0; height < depth; height++)
            if (n >> height & 1u)
                s = plus(waiting[height], s);
        return s;
    }
};

// The threads of a block that work on one frame: thread q of n_team; n_columns frames are adjacent, as columns. Results
// are reduced by shuffles within a warp, then through shared memory.
template <int n_columns, int n_team> struct Team {
    static const int n_in_warp = n_columns >= 32 ? 1 : n_columns * n_team < 32 ? n_team : 32 / n_columns;
    static const int n_groups = n_team / n_in_warp;
    static const int n_scratch = n_columns * n_groups; // of type Sum
    Sum *scratch;
    int q, column;

    INLINE Team(void *memory) : scratch((Sum *)memory), q(threadIdx.x / n_columns), column(threadIdx.x % n_columns) {}

    INLINE int place() const { return q / n_in_warp * n_columns + column; }
    INLINE int place_of(int group) const { return group * n_columns + column; }

    INLINE Sum sum(Sum s) const
    {
        for (int k = 1; k < n_in_warp; k *= 2)
            s = plus(s, from_lane(s, k * n_columns));
        if (n_groups == 1)
            return s;
        if (q % n_in_warp == 0)
            scratch[place()] = s;
        __syncthreads();
        Fold<8> fold; // n_groups <= 64
        for (int g = 0; g < n_groups; g++)
            fold.push(scratch[place_of(g)]);
        s = fold.result();
        __syncthreads();
        return s;
    }
    INLINE Number largest(Number m) const
    {
        for (int k = 1; k < n_in_warp; k *= 2)
            m = maximum(m, __shfl_xor_sync(FULL_MASK, m, k * n_columns));
        if (n_groups == 1)
            return m;
        Number *all = (Number *)scratch;
        if (q % n_in_warp == 0)
            all[place()] = m;
        __syncthreads();
        for (int g = 0; g < n_groups; g++)
            m = maximum(m, all[place_of(g)]);
        __syncthreads();
        return m;
    }
    INLINE Index count(Index n) const
    {
        for (int k = 1; k < n_in_warp; k *= 2)
            n += __shfl_xor_sync(FULL_MASK, n, k * n_columns);
        if (n_groups == 1)
            return n;
        Index *all = (Index *)scratch;
        if (q % n_in_warp == 0)
            all[place()] = n;
        __syncthreads();
        n = 0;
        for (int g = 0; g < n_groups; g++)
            n += all[place_of(g)];
        __syncthreads();
        return n;
    }
};

// The slices that thread q of a team folds: a power of two, so that the fold over the team continues the same tree.
struct Share {
    Index first, last;
    INLINE Share(Index n_slices, int q, int n_team)
    {
        Index size = 1;
        while (size * n_team < n_slices)
            size *= 2;
        first = q * size < n_slices ? q * size : n_slices;
        last = first + size < n_slices ? first + size : n_slices;
    }
};
