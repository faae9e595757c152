// Forward, frames of consecutive classes: one or more frames in the registers of a warp, one in the shared memory of a
// block, or one split over blocks.

#define FORWARD_ARGUMENTS                                                                                             \
    const X *x, Y *y, void *workspace, Index n_outer, Index n_classes, Index n_inner, Index x_outer, Index x_class,   \
        Index y_outer, Index y_class, Index first_frame, Index n_frames
#define BACKWARD_ARGUMENTS                                                                                            \
    const X *dy, const X *y, X *dx, void *workspace, Index n_outer, Index n_classes, Index n_inner, Index dy_outer,   \
        Index dy_class, Index y_outer, Index y_class, Index dx_outer, Index dx_class, Index first_frame,              \
        Index n_frames

extern __shared__ __align__(16) unsigned char lsm_shared[];

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

INLINE double leaf(const Number *e)
{
    if (LEAF_CLASSES == 4)
        return as_double((e[0] + e[1]) + (e[2] + e[3]));
    return as_double(e[0] + e[1]);
}

// The fold over the leaves of a row: sums[0] and sums[1] are adjacent leaves, or 32 apart.
template <int n_lanes> INLINE Sum fold_row(const Sum (&sums)[2], bool has_two)
{
    Sum a = sums[0], b = sums[1];
    if (IS_PAIRED)
        a = plus(a, b);
    for (int k = 1; k < n_lanes; k *= 2) {
        a = plus(a, from_lane(a, k));
        if (has_two && !IS_PAIRED)
            b = plus(b, from_lane(b, k));
    }
    return IS_PAIRED || !has_two ? a : plus(a, b);
}

// The largest element of a lane; -inf if all are NaN.
template <int n, class T, int size, int n_pieces> INLINE Number largest_of(const Held<n, T, size> (&x)[n_pieces])
{
    Number m = minus_infinity();
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
#pragma unroll
        for (int j = 0; j < n; j++)
            m = maximum(m, load(x[i].at(j)));
    return m;
}
#ifdef LSM_HAS_PAIRS
template <int n, class T, int n_pieces> INLINE Number largest_of(const Held<n, T, 2> (&x)[n_pieces])
{
    Held<2, T> m = {{x[0].words[0]}};
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
#pragma unroll
        for (int j = i ? 0 : 1; j < n / 2; j++)
            m.words[0] = maximum_pair(m.words[0], x[i].words[j], T());
    return maximum(maximum(minus_infinity(), load(m.at(0))), load(m.at(1)));
}
#endif

// What n_lanes lanes compute from the slice they hold; the same in each lane.
struct Found {
    Number m;
    int n_largest;
    Sum sum; // of exp_below
};
template <int n_lanes, int n_pieces> INLINE Found found_in(Unit (&x)[n_pieces])
{
    Found found;
    found.m = largest_of(x);
    for (int k = 1; k < n_lanes; k *= 2)
        found.m = maximum(found.m, __shfl_xor_sync(FULL_MASK, found.m, k));
    Shift shift = shift_to(found.m);
    Sum sums[2] = {nothing(), nothing()};
    found.n_largest = 0;
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        Number e[PIECE_CLASSES];
        forget(x[i]);
#pragma unroll
        for (int j = 0; j < PIECE_CLASSES; j++) {
            Number v = load(x[i].at(j));
            found.n_largest += is_largest(v, shift);
            e[j] = exp_below(v, shift);
        }
        int at = IS_PAIRED ? 0 : i % 2;
        sums[at] = plus(sums[at], leaf(e));
        if (IS_PAIRED)
            sums[1] = plus(sums[1], leaf(e + PIECE_CLASSES - LEAF_CLASSES));
    }
    for (int k = 1; k < n_lanes; k *= 2)
        found.n_largest += __shfl_xor_sync(FULL_MASK, found.n_largest, k);
    found.sum = fold_row<n_lanes>(sums, n_pieces > 1);
    return found;
}
INLINE Record record_of(const Found &found)
{
    Record record = {found.m, found.n_largest, finish(found.sum.total, found.sum.error, shift_to(found.m))};
    return record;
}

template <int n_lanes, int n_pieces>
INLINE void write_slice(Y *frame, Place at, Place n, Unit (&x)[n_pieces], Normaliser c)
{
    Writer<n_lanes, PIECE_CLASSES, Y> out(frame + lane_at<n_lanes>(at), n_left<n_lanes>(at, n));
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        Number r[PIECE_CLASSES];
        forget(x[i]);
#pragma unroll
        for (int j = 0; j < PIECE_CLASSES; j++)
            r[j] = normalised(load(x[i].at(j)), c);
        out.write(i, r);
    }
    out.end(n_pieces);
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

#ifdef LSM_FORWARD

#ifdef LSM_GROUP
// The lanes of a frame process LSM_FRAMES frames in turn, and each lane finalizes a different one: with few classes,
// that takes most of the instructions, in double.
extern "C" __global__ void __launch_bounds__(128, 4) log_softmax(FORWARD_ARGUMENTS)
{
    const int n_side_by_side = 32 / LSM_LANES, lane = threadIdx.x % LSM_LANES;
    Index warp = blockIdx.x * (Index)(blockDim.x / 32) + this_warps_number();
    Index first = warp * (LSM_FRAMES * n_side_by_side) + threadIdx.x % 32 / LSM_LANES;
    x += (first_frame + first) * x_outer;
    y += (first_frame + first) * y_outer;
    Unit held[LSM_FRAMES][LSM_PIECES];
    Place n[LSM_FRAMES];
#pragma unroll
    for (int f = 0; f < LSM_FRAMES; f++) {
        n[f] = first + f * n_side_by_side < n_frames ? (Place)n_classes : 0; // 0: the lane only takes part in shuffles
        read_slice<LSM_LANES>(held[f], x + f * n_side_by_side * x_outer, 0, n[f], Of<X>::low());
    }
    Found mine;
#pragma unroll
    for (int f = 0; f < LSM_FRAMES; f++) {
        Found found = found_in<LSM_LANES>(held[f]);
        if (f == 0 || lane == f)
            mine = found;
    }
    Record of = record_of(mine);
    Normaliser c = normaliser(of.m, of.n_largest, of.below);
#pragma unroll
    for (int f = 0; f < LSM_FRAMES; f++) {
        Normaliser of_f = c;
        if (LSM_FRAMES > 1) {
            of_f.high = __shfl_sync(FULL_MASK, c.high, f, LSM_LANES);
            of_f.low = __shfl_sync(FULL_MASK, c.low, f, LSM_LANES);
        }
        write_slice<LSM_LANES>(y + f * n_side_by_side * y_outer, 0, n[f], held[f], of_f);
    }
}
#endif

#ifdef LSM_SHARED
// A thread reads only what it wrote to shared memory itself, so no barrier is needed.
extern "C" __global__ void __launch_bounds__(LSM_THREADS, LSM_BLOCKS) log_softmax(FORWARD_ARGUMENTS)
{
    const int n = (int)n_classes, n_slices = (int)count_slices(n);
    X *frame = (X *)lsm_shared;
    Record *records = (Record *)(frame + n_slices * SLICE_CLASSES);
    x += (first_frame + blockIdx.x) * x_outer;
    y += (first_frame + blockIdx.x) * y_outer;
    Unit held[SLICE_PIECES];
    for (int at = this_warps_number() * SLICE_CLASSES; at < n; at += blockDim.x / 32 * SLICE_CLASSES) {
        read_slice<32>(held, x, at, n, Of<X>::low());
#pragma unroll
        for (int i = 0; i < SLICE_PIECES; i++)
            put_whole(frame + lane_at<32>(at) + i * 32 * PIECE_CLASSES, held[i]);
        Record of = record_of(found_in<32>(held));
        if (threadIdx.x % 32 == 0)
            records[at / SLICE_CLASSES] = of;
    }
    __syncthreads();
    Normaliser c = merge<3>(records, 1, n_slices, this_warp(), 32); // up to 128 slices
    for (int at = this_warps_number() * SLICE_CLASSES; at < n; at += blockDim.x / 32 * SLICE_CLASSES) {
#pragma unroll
        for (int i = 0; i < SLICE_PIECES; i++)
            get_whole(held[i], frame + lane_at<32>(at) + i * 32 * PIECE_CLASSES);
        write_slice<32>(y, at, n, held, c);
    }
}
#endif

#ifdef LSM_SPLIT
extern "C" __global__ void __launch_bounds__(256, 2) log_softmax_sums(FORWARD_ARGUMENTS)
{
    Index n_slices = count_slices(n_classes);
    unsigned n_blocks = gridDim.x / (unsigned)n_frames;
    Index i = blockIdx.x / n_blocks, k = blockIdx.x % n_blocks * SPLIT_BLOCK_WARPS + this_warps_number();
    x += (first_frame + i) * x_outer;
    Unit held[SLICE_PIECES];
    read_slice<32>(held, x, k * SLICE_CLASSES, n_classes, Of<X>::low());
    Record of = record_of(found_in<32>(held));
    if (threadIdx.x % 32 == 0 && k < n_slices)
        ((Record *)workspace)[i * n_slices + k] = of;
}

extern "C" __global__ void __launch_bounds__(256, 2 - FEWER_BLOCKS) log_softmax(FORWARD_ARGUMENTS)
{
    Index n_slices = count_slices(n_classes);
    unsigned n_blocks = gridDim.x / (unsigned)n_frames;
    Index i = blockIdx.x / n_blocks, k = blockIdx.x % n_blocks * SPLIT_BLOCK_WARPS + this_warps_number();
    Team<1, 32 * SPLIT_BLOCK_WARPS> team(lsm_shared);
    Normaliser c = merge<LSM_DEPTH>((Record *)workspace + i * n_slices, 1, n_slices, team, 32 * SPLIT_BLOCK_WARPS);
    x += (first_frame + i) * x_outer;
    y += (first_frame + i) * y_outer;
    for (; k < n_slices; k += n_blocks * SPLIT_BLOCK_WARPS) {
        Unit held[SLICE_PIECES];
        read_slice<32>(held, x, k * SLICE_CLASSES, n_classes, Of<X>::low());
        write_slice<32>(y, k * SLICE_CLASSES, n_classes, held, c);
    }
}
#endif

#endif
