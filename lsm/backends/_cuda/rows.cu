// Frames of consecutive classes: one or more in the registers of a warp, one in the shared memory of a block, or one
// split over blocks. Input a is kept on chip, b is read once.

extern __shared__ __align__(16) unsigned char lsm_shared[];

// The arguments of a kernel. Array b is a if there is only one input.
struct Call {
    const X *a, *b;
    Y *to;
    void *workspace;
    Index n_classes, n_inner, a_outer, a_class, b_outer, b_class, to_outer, to_class, first_frame, n_frames;

    INLINE void move_to(Index outer, Index inner)
    {
        a += outer * a_outer + inner;
        b += outer * b_outer + inner;
        to += outer * to_outer + inner;
    }
};

// An operation Op inherits from its reduction of a, Exponentials or Terms, and has
// - reads_two: whether there is a b; then limits_range: whether the range of b may make all of a frame NaN,
// - Parameters: what all results of a frame have in common, and parameters(), which makes them from the reduction,
// - result() of a class, from its a; with b: results() of several classes, from a, b and the maximum of b or more,
// - from_lane(), if there is no b: the parameters of another lane,
// - marks_of() and makes_nan(), if limits_range: what the maximum of some b says about the frame.

// A thread's consecutive elements: one leaf, or two for 16-bit types, to make 16 bytes.
const bool IS_PAIRED = sizeof(X) == 2;
const int PIECE_CLASSES = IS_PAIRED ? 2 * LEAF_CLASSES : LEAF_CLASSES;
const int SLICE_PIECES = SLICE_CLASSES / (32 * PIECE_CLASSES); // per lane of a warp
const int SPLIT_BLOCK_WARPS = 8;

typedef Held<PIECE_CLASSES, X> Unit;

// An index into a frame; an int suffices for frames on chip.
#ifdef LSM_SPLIT
typedef Index Place;
#else
typedef int Place;
#endif

// A lane's first element in the slice that begins at `at`; its pieces are n_lanes * PIECE_CLASSES apart. n_before and
// n_left: how many classes a lane may access before it and from it on, as an int; one past the end still stores for its
// neighbour.
const int LEFT_MAX_CLASSES = SLICE_CLASSES + 16;
template <int n_lanes> INLINE Place lane_at(Place at) { return at + (int)(threadIdx.x % n_lanes * PIECE_CLASSES); }
template <int n_lanes> INLINE int n_before(Place at) { return lane_at<n_lanes>(at) ? 16 : 0; }
template <int n_lanes> INLINE int n_left(Place at, Place n)
{
    Place left = n - lane_at<n_lanes>(at);
    return left < -16 ? -16 : left < LEFT_MAX_CLASSES ? (int)left : LEFT_MAX_CLASSES;
}

template <int n_lanes, int n_pieces>
INLINE void read_slice(Unit (&to)[n_pieces], const X *frame, Place at, Place n, X filler)
{
    read<n_lanes>(to, frame + lane_at<n_lanes>(at), -n_before<n_lanes>(at), n_left<n_lanes>(at, n), filler);
}

template <class T> INLINE double leaf(const T *e)
{
    if (LEAF_CLASSES == 4)
        return as_double((e[0] + e[1]) + (e[2] + e[3]));
    return as_double(e[0] + e[1]);
}

// The largest element of a lane; -inf if all are NaN.
template <int n, class T, int size, int n_pieces> INLINE Number largest_of(const Held<n, T, size> (&x)[n_pieces])
{
    Number m = minus_infinity();
    UNROLL for (int i = 0; i < n_pieces; i++)
        UNROLL for (int j = 0; j < n; j++)
            m = maximum(m, load(x[i].at(j)));
    return m;
}
#ifdef LSM_HAS_PAIRS
template <int n, class T, int n_pieces> INLINE Number largest_of(const Held<n, T, 2> (&x)[n_pieces])
{
    Held<2, T> m = {{x[0].words[0]}};
    UNROLL for (int i = 0; i < n_pieces; i++)
        UNROLL for (int j = i ? 0 : 1; j < n / 2; j++)
            m.words[0] = maximum_pair(m.words[0], x[i].words[j], T());
    return maximum(maximum(minus_infinity(), load(m.at(0))), load(m.at(1)));
}
#endif

// A slice in the registers of n_lanes lanes.
template <int n_lanes, int n_pieces> struct SliceOfLanes {
    Unit (&x)[n_pieces];

    INLINE Number largest() const
    {
        Number m = largest_of(x);
        for (int k = 1; k < n_lanes; k *= 2)
            m = maximum(m, __shfl_xor_sync(FULL_MASK, m, k));
        return m;
    }
    INLINE int count(int n) const
    {
        for (int k = 1; k < n_lanes; k *= 2)
            n += __shfl_xor_sync(FULL_MASK, n, k);
        return n;
    }
    INLINE bool is_any(bool x) const { return __any_sync(FULL_MASK, x); }

    struct Sums { Sum of[2]; }; // of adjacent leaves, or of leaves 32 apart
    template <class Term> INLINE Sums sums_of(Term term) const
    {
        Sums sums = {{nothing(), nothing()}};
        UNROLL for (int i = 0; i < n_pieces; i++) {
            decltype(term(Number())) e[PIECE_CLASSES];
            if (Term::is_second_pass)
                forget(x[i]);
            UNROLL for (int j = 0; j < PIECE_CLASSES; j++)
                e[j] = term(load(x[i].at(j)));
            int at = IS_PAIRED ? 0 : i % 2;
            sums.of[at] = plus(sums.of[at], leaf(e));
            if (IS_PAIRED)
                sums.of[1] = plus(sums.of[1], leaf(e + PIECE_CLASSES - LEAF_CLASSES));
        }
        return sums;
    }
    INLINE Sum fold(const Sums &sums) const
    {
        Sum a = sums.of[0], b = sums.of[1];
        if (IS_PAIRED)
            a = plus(a, b);
        for (int k = 1; k < n_lanes; k *= 2) {
            a = plus(a, from_lane(a, k));
            if (n_pieces > 1 && !IS_PAIRED)
                b = plus(b, from_lane(b, k));
        }
        return IS_PAIRED || n_pieces == 1 ? a : plus(a, b);
    }
};
typedef SliceOfLanes<32, SLICE_PIECES> SliceOfWarp;

// Some pieces are read before the first is written: in place, a store may alias the next load, which would serialise
// the loads.
#if defined(LSM_SHARED) && LSM_THREADS * LSM_BLOCKS > 512
const int IN_FLIGHT_PIECES = 2; // with 64 registers
#elif defined(LSM_SPLIT) && __CUDA_ARCH__ >= 1000
const int IN_FLIGHT_PIECES = sizeof(Number) == 8 ? 2 : 4; // four of double would take more than 128 registers
#else
const int IN_FLIGHT_PIECES = 4;
#endif

// Write the results of a piece, and raise `highest` to the maximum of its b, unless that is known of the frame.
template <class Op, bool is_known, class AnyWriter>
INLINE void write_piece(AnyWriter &out, int i, Unit &a, Unit &b, const typename Op::Parameters &p, Number &highest)
{
    Number r[PIECE_CLASSES];
    if constexpr (!Op::reads_two) {
        forget(a);
        UNROLL for (int j = 0; j < PIECE_CLASSES; j++)
            r[j] = Op::result(load(a.at(j)), p);
    } else {
        Number v[PIECE_CLASSES], here = highest;
        if (!is_known) {
            forget(a);
            forget(b);
        }
        UNROLL for (int j = 0; j < PIECE_CLASSES; j++) {
            r[j] = load(a.at(j));
            v[j] = load(b.at(j));
        }
        if (!is_known) {
            here = highest_of(v);
            highest = higher(highest, here);
        }
        Op::results(r, v, p, here);
    }
    out.write(i, r);
}

// Write a slice whose elements n_lanes lanes hold, as write_piece does.
template <class Op, int n_lanes, bool is_known, int n_pieces>
INLINE void write_held(Y *frame, Place at, Place n, Unit (&a)[n_pieces], Unit (&b)[n_pieces],
                       const typename Op::Parameters &p, Number &highest)
{
    Writer<n_lanes, PIECE_CLASSES, Y> out(frame + lane_at<n_lanes>(at), n_left<n_lanes>(at, n));
    UNROLL for (int i = 0; i < n_pieces; i++)
        write_piece<Op, is_known>(out, i, a[i], b[i], p, highest);
    out.end(n_pieces);
}

// Write a slice, of which a may be in shared memory, and raise `highest` to the maximum of the lane's b, or NaN.
// Without b, the lanes hold all of the slice; with b, that would take too many registers.
template <class Op, bool is_on_chip>
INLINE void write_slice(const Call &c, const X *a, Place at, Place n, const typename Op::Parameters &p, Number &highest)
{
    if constexpr (!Op::reads_two) {
        Unit held[SLICE_PIECES];
        if (!is_on_chip)
            read_slice<32>(held, a, at, n, Op::filler());
        UNROLL for (int i = 0; is_on_chip && i < SLICE_PIECES; i++)
            get_whole(held[i], a + lane_at<32>(at) + i * 32 * PIECE_CLASSES);
        write_held<Op, 32, true>(c.to, at, n, held, held, p, highest);
    } else {
        int before = n_before<32>(at), left = n_left<32>(at, n);
        a += lane_at<32>(at);
        const X *b = c.b + lane_at<32>(at);
        Writer<32, PIECE_CLASSES, Y> out(c.to + lane_at<32>(at), left);
        UNROLL for (int first = 0; first < SLICE_PIECES; first += IN_FLIGHT_PIECES) {
            const int k = first * 32 * PIECE_CLASSES;
            Unit of_a[IN_FLIGHT_PIECES], of_b[IN_FLIGHT_PIECES];
            read<32>(of_b, b + k, first ? -16 : -before, left - k, Of<X>::low());
            if (!is_on_chip)
                read<32>(of_a, a + k, first ? -16 : -before, left - k, Op::filler());
            UNROLL for (int i = 0; i < IN_FLIGHT_PIECES; i++) {
                if (is_on_chip)
                    get_whole(of_a[i], a + k + i * 32 * PIECE_CLASSES);
                write_piece<Op, false>(out, first + i, of_a[i], of_b[i], p, highest);
            }
        }
        out.end(SLICE_PIECES);
    }
}

INLINE void write_nan(Y *to, Place at, Place n)
{
    Y nan;
    set(nan, number(not_a_number()));
    for (Place i = at + (int)(threadIdx.x % 32); i < at + SLICE_CLASSES && i < n; i += 32)
        to[i] = nan;
}

INLINE int marks_of_warp(int marks)
{
    return (__any_sync(FULL_MASK, marks & 1) ? 1 : 0) | (__any_sync(FULL_MASK, marks & 2) ? 2 : 0);
}

// Combine the marks of a block; `of_warps` has one element per warp.
INLINE int marks_of_block(int marks, int *of_warps)
{
    marks = marks_of_warp(marks);
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = marks;
    __syncthreads();
    marks = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++)
        marks |= of_warps[warp];
    return marks;
}

// The warp as a team of 32, each thread with its share of the slices.
typedef Team<1, 32> Warp;
INLINE Warp this_warp()
{
    Warp warp(nullptr);
    warp.q = threadIdx.x % 32;
    return warp;
}

INLINE int this_warps_number() { return common<32>(threadIdx.x / 32); }

#ifdef LSM_GROUP
// The lanes of a frame process LSM_FRAMES frames in turn, and each lane finalizes a different one: with few classes,
// that takes most of the instructions, in double.
template <class Op> INLINE void write_group(Call c)
{
    const int n_side_by_side = 32 / LSM_LANES, lane = threadIdx.x % LSM_LANES;
    Index warp = blockIdx.x * (Index)(blockDim.x / 32) + this_warps_number();
    Index first = warp * (LSM_FRAMES * n_side_by_side) + threadIdx.x % 32 / LSM_LANES;
    c.move_to(c.first_frame + first, 0);
    Unit a[LSM_FRAMES][LSM_PIECES], b[LSM_FRAMES][LSM_PIECES];
    Place n[LSM_FRAMES];
    UNROLL for (int f = 0; f < LSM_FRAMES; f++) {
        // 0: the lane only takes part in shuffles
        n[f] = first + f * n_side_by_side < c.n_frames ? (Place)c.n_classes : 0;
        read_slice<LSM_LANES>(a[f], c.a + f * n_side_by_side * c.a_outer, 0, n[f], Op::filler());
        if (Op::reads_two)
            read_slice<LSM_LANES>(b[f], c.b + f * n_side_by_side * c.b_outer, 0, n[f], Of<X>::low());
    }
    static_assert(LSM_FRAMES == 1 || !Op::reads_two, "b is held for one frame");
    Number highest = minus_infinity();
    if constexpr (Op::reads_two) {
        UNROLL for (int i = 0; i < LSM_PIECES; i++)
            UNROLL for (int j = 0; j < PIECE_CLASSES; j++)
                highest = higher(highest, load(b[0][i].at(j)));
        for (int k = 1; k < LSM_LANES; k *= 2)
            highest = higher(highest, __shfl_xor_sync(FULL_MASK, highest, k));
    }
    typename Op::Found mine;
    UNROLL for (int f = 0; f < LSM_FRAMES; f++) {
        typename Op::Found found = Op::found_in(SliceOfLanes<LSM_LANES, LSM_PIECES>{a[f]});
        if (f == 0 || lane == f)
            mine = found;
    }
    bool is_nan = false;
    if constexpr (Op::limits_range)
        is_nan = Op::makes_nan(Op::marks_of(highest));
    typename Op::Parameters p = Op::parameters(Op::whole_of(mine), is_nan);
    UNROLL for (int f = 0; f < LSM_FRAMES; f++) {
        typename Op::Parameters of_f = p;
        if constexpr (LSM_FRAMES > 1)
            of_f = Op::from_lane(p, f, LSM_LANES);
        write_held<Op, LSM_LANES, true>(c.to + f * n_side_by_side * c.to_outer, 0, n[f], a[f], b[f], of_f, highest);
    }
}
#endif

#ifdef LSM_SHARED
// A thread reads only what it wrote to shared memory itself, so no barrier is needed.
template <class Op> INLINE void write_shared(Call c)
{
    typedef typename Op::Partial Partial;
    const int n = (int)c.n_classes, n_slices = (int)count_slices(n);
    X *frame = (X *)lsm_shared;
    Partial *partials = (Partial *)(frame + n_slices * SLICE_CLASSES);
    c.move_to(c.first_frame + blockIdx.x, 0);
    Unit held[SLICE_PIECES];
    for (int at = this_warps_number() * SLICE_CLASSES; at < n; at += blockDim.x / 32 * SLICE_CLASSES) {
        read_slice<32>(held, c.a, at, n, Op::filler());
        UNROLL for (int i = 0; i < SLICE_PIECES; i++)
            put_whole(frame + lane_at<32>(at) + i * 32 * PIECE_CLASSES, held[i]);
        Partial of = Op::partial_in(SliceOfWarp{held});
        if (threadIdx.x % 32 == 0)
            partials[at / SLICE_CLASSES] = of;
    }
    __syncthreads();
    // merge<3>: up to 128 slices
    typename Op::Parameters p = Op::parameters(Op::template merge<3>(partials, 1, n_slices, this_warp(), 32), false);
    Number highest = minus_infinity();
    for (int at = this_warps_number() * SLICE_CLASSES; at < n; at += blockDim.x / 32 * SLICE_CLASSES)
        write_slice<Op, true>(c, frame, at, n, p, highest);
    if constexpr (Op::limits_range)
        if (Op::makes_nan(marks_of_block(Op::marks_of(highest), (int *)(partials + n_slices))))
            for (int at = this_warps_number() * SLICE_CLASSES; at < n; at += blockDim.x / 32 * SLICE_CLASSES)
                write_nan(c.to, at, n);
}
#endif

#ifdef LSM_SPLIT
// The frame of a block in a grid with the same number of blocks per frame, and the first slice of a warp.
struct InGrid {
    unsigned n_blocks;
    Index n_slices, frame, slice;
    INLINE InGrid(const Call &c)
        : n_blocks(gridDim.x / (unsigned)c.n_frames), n_slices(count_slices(c.n_classes)), frame(blockIdx.x / n_blocks),
          slice(blockIdx.x % n_blocks * SPLIT_BLOCK_WARPS + this_warps_number())
    {
    }
};

template <class Op> INLINE void sum_split(Call c)
{
    InGrid in(c);
    c.move_to(c.first_frame + in.frame, 0);
    Unit held[SLICE_PIECES];
    read_slice<32>(held, c.a, in.slice * SLICE_CLASSES, c.n_classes, Op::filler());
    typename Op::Partial of = Op::partial_in(SliceOfWarp{held});
    if (threadIdx.x % 32 == 0 && in.slice < in.n_slices)
        ((typename Op::Partial *)c.workspace)[in.frame * in.n_slices + in.slice] = of;
}

// Stores the marks of each slice after the partial results: only when the whole frame is written is it known whether
// it becomes NaN.
template <class Op> INLINE void write_split(Call c)
{
    InGrid in(c);
    const int n_team = 32 * SPLIT_BLOCK_WARPS;
    typename Op::Partial *partials = (typename Op::Partial *)c.workspace;
    int *marks = (int *)(partials + c.n_frames * in.n_slices) + in.frame * in.n_slices;
    Team<1, n_team> team(lsm_shared);
    typename Op::Parameters p = Op::parameters(
        Op::template merge<LSM_DEPTH>(partials + in.frame * in.n_slices, 1, in.n_slices, team, n_team), false);
    c.move_to(c.first_frame + in.frame, 0);
    for (Index k = in.slice; k < in.n_slices; k += in.n_blocks * SPLIT_BLOCK_WARPS) {
        Number highest = minus_infinity();
        write_slice<Op, false>(c, c.a, k * SLICE_CLASSES, c.n_classes, p, highest);
        if constexpr (Op::limits_range) {
            int found = marks_of_warp(Op::marks_of(highest));
            if (threadIdx.x % 32 == 0)
                marks[k] = found;
        }
    }
}

template <class Op> INLINE void end_split(Call c)
{
    InGrid in(c);
    const int *marks = (const int *)((typename Op::Partial *)c.workspace + c.n_frames * in.n_slices);
    int found = 0;
    for (Index i = threadIdx.x; i < in.n_slices; i += blockDim.x)
        found |= marks[in.frame * in.n_slices + i];
    if (!Op::makes_nan(marks_of_block(found, (int *)lsm_shared)))
        return;
    c.move_to(c.first_frame + in.frame, 0);
    for (Index k = in.slice; k < in.n_slices; k += in.n_blocks * SPLIT_BLOCK_WARPS)
        write_nan(c.to, k * SLICE_CLASSES, c.n_classes);
}
#endif
