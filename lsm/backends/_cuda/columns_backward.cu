// Backward, adjacent frames: dy is kept where forward keeps x; y is read once.

#if defined(LSM_COLUMNS) && defined(LSM_BACKWARD)

INLINE Sum sum_of_column(const X *held, Index n_rows, const Tile &tile, double scale)
{
    Fold<5> fold; // LSM_LEAVES <= 16
    for (int a = 0; a < LSM_LEAVES; a++) {
        Sum s = nothing();
        for (int r = 0; r < n_rows; r++) {
            double e[LEAF_CLASSES];
#pragma unroll
            for (int j = 0; j < LEAF_CLASSES; j++)
                e[j] = as_double(load(held[(r * THREAD_ROW_CLASSES + a * LEAF_CLASSES + j) * TILE_THREADS])) * scale;
            s = plus(s, LEAF_CLASSES == 4 ? (e[0] + e[1]) + (e[LEAF_CLASSES - 2] + e[LEAF_CLASSES - 1]) : e[0] + e[1]);
        }
        fold.push(s);
    }
    return tile.sum(fold.result());
}

INLINE Part part_of_column(const X *held, Index n_rows, const Tile &tile)
{
    Part part = {sum_of_column(held, n_rows, tile, 1), false};
    if (sizeof(Number) == 8 && __syncthreads_or(left_the_range(part.sum))) {
        Sum smaller = sum_of_column(held, n_rows, tile, SMALLER);
        if (left_the_range(part.sum)) {
            part.sum = smaller;
            part.is_smaller = true;
        }
    }
    return part;
}

// Write dx of some classes; returns their largest y, or NaN.
INLINE Number write_step(const Step &step, X *dx, Index dx_class, const X (&dy)[STEP_CLASSES],
                         const X (&y)[STEP_CLASSES], const Total &s)
{
    const int n = sizeof(Number) == 8 ? 2 : 4; // at once; more would take too many registers
    Number highest = minus_infinity();
#pragma unroll
    for (int first = 0; first < STEP_CLASSES; first += n) {
        Number r[n], v[n];
#pragma unroll
        for (int j = 0; j < n; j++) {
            r[j] = load(dy[first + j]);
            v[j] = load(y[first + j]);
        }
        Number here = highest_of(v);
        highest = higher(highest, here);
        gradients(r, v, s, here);
#pragma unroll
        for (int j = 0; j < n; j++)
            if (step.has(first + j))
                set(*step.at(first + j, dx, dx_class), r[j]);
    }
    return highest;
}

// Combine the marks of a column's threads.
INLINE int marks_of_column(int marks, const Tile &tile)
{
    Index n = tile.count((marks & IS_BAD ? 1 : 0) + (marks & IS_OPEN ? (Index)1 << 32 : 0));
    return (n & 0xffffffff ? IS_BAD : 0) | (n >> 32 ? IS_OPEN : 0);
}

INLINE void write_nan_rows(X *dx, Index dx_class, Index first_row, Index n_rows, int q, Index n)
{
    for (Index r = first_row; r < first_row + n_rows; r++) {
        for (int i = 0; i < THREAD_ROW_CLASSES; i++) {
            Index k = class_of(r, q, i);
            if (k < n)
                set(dx[k * dx_class], number(not_a_number()));
        }
    }
}

#ifdef LSM_COLUMNS_ON_CHIP
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_TILES) log_softmax_backward(BACKWARD_ARGUMENTS)
{
    const int n_rows = (int)count_tile_rows(n_classes), n_slices = (int)count_slices(n_classes);
    X *held = (X *)lsm_shared;
    Part *parts = (Part *)(held + n_rows * THREAD_ROW_CLASSES * TILE_THREADS);
    Tile tile(parts + n_slices * LSM_COLUMNS);
    Column column(blockIdx.x, tile.column, first_frame, n_frames, n_inner, n_classes);
    dy += column.outer * dy_outer + column.inner;
    y += column.outer * y_outer + column.inner;
    dx += column.outer * dx_outer + column.inner;
    held += threadIdx.x;
    const X zero = {0};
    hold(held, dy, dy_class, 0, n_rows, tile.q, column.n, zero);
    for (int k = 0; k < n_slices; k++) {
        Part of = part_of_column(held + 4 * k * THREAD_ROW_CLASSES * TILE_THREADS, rows_of_slice(k, n_classes), tile);
        if (tile.q == 0)
            parts[k * LSM_COLUMNS + tile.column] = of;
    }
    __syncthreads();
    Total s = merge<8>(parts + tile.column, LSM_COLUMNS, n_slices, tile, LSM_TEAM);
    Number highest = minus_infinity();
    for (int own = 0; own < n_rows * THREAD_ROW_CLASSES; own += STEP_CLASSES) {
        Step step(0, own, tile.q, column.n);
        X of_y[STEP_CLASSES];
        step.read(of_y, y, y_class, Of<X>::low());
        X of_dy[STEP_CLASSES];
#pragma unroll
        for (int j = 0; j < STEP_CLASSES; j++)
            of_dy[j] = THREAD_ROW_CLASSES % STEP_CLASSES == 0 || own + j < n_rows * THREAD_ROW_CLASSES ?
                           held[(own + j) * TILE_THREADS] :
                           zero;
        highest = higher(highest, write_step(step, dx, dx_class, of_dy, of_y, s));
    }
    if (makes_nan(marks_of_column(marks_of(highest), tile)))
        write_nan_rows(dx, dx_class, 0, n_rows, tile.q, column.n);
}
#endif

#ifdef LSM_COLUMNS_SPLIT
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_TILES) log_softmax_backward_sums(BACKWARD_ARGUMENTS)
{
    unsigned n_slices = count_slices(n_classes);
    Index f = blockIdx.x / n_slices, k = blockIdx.x % n_slices;
    X *held = (X *)lsm_shared;
    Tile tile(held + 4 * THREAD_ROW_CLASSES * TILE_THREADS);
    Column column(f, tile.column, first_frame, n_frames, n_inner, n_classes);
    dy += column.outer * dy_outer + column.inner;
    held += threadIdx.x;
    const X zero = {0};
    Index n_here = rows_of_slice(k, n_classes);
    hold(held, dy, dy_class, 4 * k, n_here, tile.q, column.n, zero);
    Part of = part_of_column(held, n_here, tile);
    if (tile.q == 0)
        ((Part *)workspace)[(f * n_slices + k) * LSM_COLUMNS + tile.column] = of;
}

// Stores the marks of each column's slices after the parts, as for rows.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_TILES - FEWER_BLOCKS)
    log_softmax_backward(BACKWARD_ARGUMENTS)
{
    unsigned n_slices = count_slices(n_classes), n_tiles = (n_frames + LSM_COLUMNS - 1) / LSM_COLUMNS;
    unsigned n_blocks = gridDim.x / n_tiles, f = blockIdx.x / n_blocks;
    Tile tile(lsm_shared);
    const Part *parts = (const Part *)workspace;
    Index place = (Index)f * n_slices * LSM_COLUMNS + tile.column;
    int *marks = (int *)(parts + (Index)n_tiles * n_slices * LSM_COLUMNS) + place;
    Total s = merge<LSM_DEPTH>(parts + place, LSM_COLUMNS, n_slices, tile, LSM_TEAM);
    Column column(f, tile.column, first_frame, n_frames, n_inner, n_classes);
    dy += column.outer * dy_outer + column.inner;
    y += column.outer * y_outer + column.inner;
    dx += column.outer * dx_outer + column.inner;
    const X zero = {0};
    for (unsigned slice = blockIdx.x % n_blocks; slice < n_slices; slice += n_blocks) {
        Number highest = minus_infinity();
        const int n_own = rows_of_slice(slice, n_classes) * THREAD_ROW_CLASSES;
        for (int own = 0; own < n_own; own += STEP_CLASSES) {
            Step step((Index)4 * slice, own, tile.q, column.n);
            X of_dy[STEP_CLASSES], of_y[STEP_CLASSES];
            step.read(of_dy, dy, dy_class, zero);
            step.read(of_y, y, y_class, Of<X>::low());
            highest = higher(highest, write_step(step, dx, dx_class, of_dy, of_y, s));
        }
        int found = marks_of_column(marks_of(highest), tile);
        if (tile.q == 0)
            marks[(Index)slice * LSM_COLUMNS] = found;
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_TILES - FEWER_BLOCKS)
    log_softmax_backward_ends(BACKWARD_ARGUMENTS)
{
    unsigned n_slices = count_slices(n_classes), n_tiles = (n_frames + LSM_COLUMNS - 1) / LSM_COLUMNS;
    unsigned n_blocks = gridDim.x / n_tiles, f = blockIdx.x / n_blocks;
    Tile tile(lsm_shared);
    const int *marks = (const int *)((const Part *)workspace + (Index)n_tiles * n_slices * LSM_COLUMNS);
    Index place = (Index)f * n_slices * LSM_COLUMNS + tile.column;
    int found = 0;
    for (Index k = tile.q; k < n_slices; k += LSM_TEAM)
        found |= marks[place + k * LSM_COLUMNS];
    bool is_nan = makes_nan(marks_of_column(found, tile));
    Column column(f, tile.column, first_frame, n_frames, n_inner, n_classes);
    dx += column.outer * dx_outer + column.inner;
    for (unsigned slice = blockIdx.x % n_blocks; is_nan && slice < n_slices; slice += n_blocks)
        write_nan_rows(dx, dx_class, (Index)4 * slice, rows_of_slice(slice, n_classes), tile.q, column.n);
}
#endif

#endif
