// Backward, frames of consecutive classes, by the same kernels: dy is kept where forward keeps x; y is read once.

template <int n_lanes, int n_pieces> INLINE Part part_at(Unit (&dy)[n_pieces], bool smaller)
{
    Sum sums[2] = {nothing(), nothing()};
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        double e[PIECE_CLASSES];
#pragma unroll
        for (int j = 0; j < PIECE_CLASSES; j++)
            e[j] = as_double(load(dy[i].at(j))) * (smaller ? SMALLER : 1);
#pragma unroll
        for (int j = 0; j < PIECE_CLASSES; j += LEAF_CLASSES) {
            int at = IS_PAIRED ? j / LEAF_CLASSES : i % 2;
            sums[at] = plus(sums[at], LEAF_CLASSES == 4
                                          ? (e[j] + e[j + 1]) + (e[j + LEAF_CLASSES - 2] + e[j + LEAF_CLASSES - 1])
                                          : e[j] + e[j + 1]);
        }
    }
    Part part;
    part.sum = fold_row<n_lanes>(sums, n_pieces > 1);
    part.is_smaller = smaller;
    return part;
}

// The sum of dy over a slice held by n_lanes lanes.
template <int n_lanes, int n_pieces> INLINE Part part_of(Unit (&dy)[n_pieces])
{
    Part part = part_at<n_lanes>(dy, false);
    if (sizeof(Number) == 8 && __any_sync(FULL_MASK, left_the_range(part.sum))) {
        Part again = part_at<n_lanes>(dy, true);
        if (left_the_range(part.sum))
            part = again;
    }
    return part;
}

// Write dx of a slice; returns the largest y of the lane, or NaN. Some pieces are read before the first is written: in
// place, a store may alias the next load, which would serialise the loads.
#if defined(LSM_SHARED) && LSM_THREADS * LSM_BLOCKS > 512
const int IN_FLIGHT_PIECES = 2; // with 64 registers
#elif defined(LSM_SPLIT) && __CUDA_ARCH__ >= 1000
const int IN_FLIGHT_PIECES = sizeof(Number) == 8 ? 2 : 4; // four of double would take more than 128 registers
#else
const int IN_FLIGHT_PIECES = 4;
#endif
template <bool is_on_chip> // whether dy is in shared memory, all of the slice
INLINE Number write_gradients(X *dx, const X *dy, const X *y, Place at, Place n, const Total &s)
{
    Number highest = minus_infinity();
    int before = n_before<32>(at), left = n_left<32>(at, n);
    const X zero = {0};
    dy += lane_at<32>(at);
    y += lane_at<32>(at);
    Writer<32, PIECE_CLASSES, X> out(dx + lane_at<32>(at), left);
#pragma unroll
    for (int first = 0; first < SLICE_PIECES; first += IN_FLIGHT_PIECES) {
        const int k = first * 32 * PIECE_CLASSES;
        Unit of_dy[IN_FLIGHT_PIECES], of_y[IN_FLIGHT_PIECES];
        read<32>(of_y, y + k, first ? -16 : -before, left - k, Of<X>::low());
        if (!is_on_chip)
            read<32>(of_dy, dy + k, first ? -16 : -before, left - k, zero);
#pragma unroll
        for (int i = 0; i < IN_FLIGHT_PIECES; i++) {
            Number r[PIECE_CLASSES], v[PIECE_CLASSES];
            if (is_on_chip)
                get_whole(of_dy[i], dy + k + i * 32 * PIECE_CLASSES);
            forget(of_dy[i]);
            forget(of_y[i]);
#pragma unroll
            for (int j = 0; j < PIECE_CLASSES; j++) {
                r[j] = load(of_dy[i].at(j));
                v[j] = load(of_y[i].at(j));
            }
            Number here = highest_of(v);
            highest = higher(highest, here);
            gradients(r, v, s, here);
            out.write(first + i, r);
        }
    }
    out.end(SLICE_PIECES);
    return highest;
}

INLINE void write_nan(X *dx, Place at, Place n)
{
    X nan;
    set(nan, number(not_a_number()));
    for (Place i = at + (int)(threadIdx.x % 32); i < at + SLICE_CLASSES && i < n; i += 32)
        dx[i] = nan;
}

INLINE int marks_of_warp(int marks)
{
    return (__any_sync(FULL_MASK, marks & IS_BAD) ? IS_BAD : 0) |
           (__any_sync(FULL_MASK, marks & IS_OPEN) ? IS_OPEN : 0);
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

#ifdef LSM_BACKWARD

#ifdef LSM_GROUP
extern "C" __global__ void __launch_bounds__(128, 4) log_softmax_backward(BACKWARD_ARGUMENTS)
{
    Index f = (blockIdx.x * (Index)blockDim.x + threadIdx.x) / LSM_LANES;
    Place n = f < n_frames ? (Place)n_classes : 0; // 0: the lane only takes part in shuffles
    dy += (first_frame + f) * dy_outer;
    y += (first_frame + f) * y_outer;
    dx += (first_frame + f) * dx_outer;
    Unit held[LSM_PIECES], held_y[LSM_PIECES];
    const X zero = {0};
    read_slice<LSM_LANES>(held, dy, 0, n, zero);
    read_slice<LSM_LANES>(held_y, y, 0, n, Of<X>::low());
    Number highest = minus_infinity();
#pragma unroll
    for (int i = 0; i < LSM_PIECES; i++)
#pragma unroll
        for (int j = 0; j < PIECE_CLASSES; j++)
            highest = higher(highest, load(held_y[i].at(j)));
    for (int k = 1; k < LSM_LANES; k *= 2)
        highest = higher(highest, __shfl_xor_sync(FULL_MASK, highest, k));
    Part part = part_of<LSM_LANES>(held);
    Total s = total_of(part.sum, part.is_smaller, makes_nan(marks_of(highest)));
    Writer<LSM_LANES, PIECE_CLASSES, X> out(dx + lane_at<LSM_LANES>(0), n_left<LSM_LANES>(0, n));
#pragma unroll
    for (int i = 0; i < LSM_PIECES; i++) {
        Number r[PIECE_CLASSES], v[PIECE_CLASSES];
#pragma unroll
        for (int j = 0; j < PIECE_CLASSES; j++) {
            r[j] = load(held[i].at(j));
            v[j] = load(held_y[i].at(j));
        }
        gradients(r, v, s, highest);
        out.write(i, r);
    }
    out.end(LSM_PIECES);
}
#endif

#ifdef LSM_SHARED
extern "C" __global__ void __launch_bounds__(LSM_THREADS, LSM_BLOCKS) log_softmax_backward(BACKWARD_ARGUMENTS)
{
    const int n = (int)n_classes, n_slices = (int)count_slices(n);
    X *frame = (X *)lsm_shared;
    Part *parts = (Part *)(frame + n_slices * SLICE_CLASSES);
    dy += (first_frame + blockIdx.x) * dy_outer;
    y += (first_frame + blockIdx.x) * y_outer;
    dx += (first_frame + blockIdx.x) * dx_outer;
    Unit held[SLICE_PIECES];
    const X zero = {0};
    for (int at = this_warps_number() * SLICE_CLASSES; at < n; at += blockDim.x / 32 * SLICE_CLASSES) {
        read_slice<32>(held, dy, at, n, zero);
#pragma unroll
        for (int i = 0; i < SLICE_PIECES; i++)
            put_whole(frame + lane_at<32>(at) + i * 32 * PIECE_CLASSES, held[i]);
        Part of = part_of<32>(held);
        if (threadIdx.x % 32 == 0)
            parts[at / SLICE_CLASSES] = of;
    }
    __syncthreads();
    Total s = merge<3>(parts, 1, n_slices, this_warp(), 32); // up to 128 slices
    Number highest = minus_infinity();
    for (int at = this_warps_number() * SLICE_CLASSES; at < n; at += blockDim.x / 32 * SLICE_CLASSES)
        highest = higher(highest, write_gradients<true>(dx, frame, y, at, n, s));
    if (makes_nan(marks_of_block(marks_of(highest), (int *)(parts + n_slices))))
        for (int at = this_warps_number() * SLICE_CLASSES; at < n; at += blockDim.x / 32 * SLICE_CLASSES)
            write_nan(dx, at, n);
}
#endif

#ifdef LSM_SPLIT
extern "C" __global__ void __launch_bounds__(256, 2) log_softmax_backward_sums(BACKWARD_ARGUMENTS)
{
    Index n_slices = count_slices(n_classes);
    unsigned n_blocks = gridDim.x / (unsigned)n_frames;
    Index f = blockIdx.x / n_blocks, k = blockIdx.x % n_blocks * SPLIT_BLOCK_WARPS + this_warps_number();
    dy += (first_frame + f) * dy_outer;
    Unit held[SLICE_PIECES];
    const X zero = {0};
    read_slice<32>(held, dy, k * SLICE_CLASSES, n_classes, zero);
    Part of = part_of<32>(held);
    if (threadIdx.x % 32 == 0 && k < n_slices)
        ((Part *)workspace)[f * n_slices + k] = of;
}

// Stores the marks of each slice after the parts: only when the whole frame is written is it known whether it becomes
// NaN.
extern "C" __global__ void __launch_bounds__(256, 2 - FEWER_BLOCKS) log_softmax_backward(BACKWARD_ARGUMENTS)
{
    Index n_slices = count_slices(n_classes);
    unsigned n_blocks = gridDim.x / (unsigned)n_frames;
    Index f = blockIdx.x / n_blocks, k = blockIdx.x % n_blocks * SPLIT_BLOCK_WARPS + this_warps_number();
    Part *parts = (Part *)workspace;
    int *marks = (int *)(parts + n_frames * n_slices) + f * n_slices;
    Team<1, 32 * SPLIT_BLOCK_WARPS> team(lsm_shared);
    Total s = merge<LSM_DEPTH>(parts + f * n_slices, 1, n_slices, team, 32 * SPLIT_BLOCK_WARPS);
    dy += (first_frame + f) * dy_outer;
    y += (first_frame + f) * y_outer;
    dx += (first_frame + f) * dx_outer;
    for (; k < n_slices; k += n_blocks * SPLIT_BLOCK_WARPS) {
        int found = marks_of_warp(marks_of(write_gradients<false>(dx, dy, y, k * SLICE_CLASSES, n_classes, s)));
        if (threadIdx.x % 32 == 0)
            marks[k] = found;
    }
}

extern "C" __global__ void __launch_bounds__(256, 2 - FEWER_BLOCKS) log_softmax_backward_ends(BACKWARD_ARGUMENTS)
{
    Index n_slices = count_slices(n_classes);
    unsigned n_blocks = gridDim.x / (unsigned)n_frames;
    Index f = blockIdx.x / n_blocks, k = blockIdx.x % n_blocks * SPLIT_BLOCK_WARPS + this_warps_number();
    const int *marks = (const int *)((Part *)workspace + n_frames * n_slices) + f * n_slices;
    int found = 0;
    for (Index i = threadIdx.x; i < n_slices; i += blockDim.x)
        found |= marks[i];
    if (!makes_nan(marks_of_block(found, (int *)lsm_shared)))
        return;
    dx += (first_frame + f) * dx_outer;
    for (; k < n_slices; k += n_blocks * SPLIT_BLOCK_WARPS)
        write_nan(dx, k * SLICE_CLASSES, n_classes);
}
#endif

#endif
