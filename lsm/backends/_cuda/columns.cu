// Forward, adjacent frames (inner > 1): one block per tile of frames, one team of threads per frame.
//
// Columns are numbered over outer and inner together, so that tiles are full even if inner is small. A thread reads the
// same positions of each row of its column and keeps them in its own part of shared memory.

#if defined(LSM_COLUMNS)

typedef Team<LSM_COLUMNS, LSM_TEAM> Tile;
const int TILE_THREADS = LSM_COLUMNS * LSM_TEAM;
// What the registers of a multiprocessor allow. Shared memory holds only one large tile.
const int RESIDENT_TILES = TILE_THREADS > 256 ? 1 : sizeof(Number) == 4 ? 3 : 2;
const int THREAD_ROW_CLASSES = LSM_LEAVES * LEAF_CLASSES; // of one thread in each row
const int TILE_ROW_CLASSES = LSM_TEAM * THREAD_ROW_CLASSES; // 64 leaves, or all there are

// The column of a thread: its position and number of classes, 0 beyond the last column.
struct Column {
    Index outer, inner, n;
    INLINE Column(Index tile, int column, Index first, Index n_columns, Index n_inner, Index n_classes)
    {
        Index i = tile * LSM_COLUMNS + column;
        n = i < n_columns ? n_classes : 0;
        outer = (first + i) / n_inner;
        inner = (first + i) % n_inner;
    }
};

// The class at position i of this thread in a row.
INLINE Index class_of(Index row, int q, int i) { return (row * LSM_TEAM + q) * THREAD_ROW_CLASSES + i; }
INLINE Index count_tile_rows(Index n) { return (n + TILE_ROW_CLASSES - 1) / TILE_ROW_CLASSES; }

// Some of a thread's classes. They are read before the first is written: in place, a store may alias the next load,
// which would serialise the loads.
#if (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750) || LSM_TEAM == 1
const int STEP_CLASSES = 4; // limited by registers
#else
const int STEP_CLASSES = 8;
#endif
struct Step {
    Index first;
    int left; // number of classes from the first on, as an int
    // From position i of the thread in a row, a multiple of STEP_CLASSES.
    INLINE Step(Index row, int i, int q, Index n)
        : first(class_of(row + i / THREAD_ROW_CLASSES, q, i % THREAD_ROW_CLASSES))
    {
        Index rest = n - first;
        left = rest < 0 ? 0 : rest < STEP_CLASSES * TILE_ROW_CLASSES ? (int)rest : STEP_CLASSES * TILE_ROW_CLASSES;
    }
    static INLINE int place(int j) { return j / THREAD_ROW_CLASSES * TILE_ROW_CLASSES + j % THREAD_ROW_CLASSES; }
    INLINE bool has(int j) const { return place(j) < left; }
    template <class T> INLINE T *at(int j, T *x, Index x_class) const { return x + (first + place(j)) * x_class; }
    INLINE void read(X (&to)[STEP_CLASSES], const X *x, Index x_class, X filler) const
    {
#pragma unroll
        for (int j = 0; j < STEP_CLASSES; j++)
            to[j] = has(j) ? *at(j, x, x_class) : filler;
    }
};

// Load rows of a column to shared memory; position i of row r goes to (r * THREAD_ROW_CLASSES + i) * TILE_THREADS.
INLINE void hold(X *held, const X *x, Index x_class, Index first_row, Index n_rows, int q, Index n, X filler)
{
    for (Index r = 0; r < n_rows; r++) {
#pragma unroll 8
        for (int i = 0; i < THREAD_ROW_CLASSES; i++) {
            Index k = class_of(first_row + r, q, i);
            held[(r * THREAD_ROW_CLASSES + i) * TILE_THREADS] = k < n ? x[k * x_class] : filler;
        }
    }
}

// The number of rows in slice k of a frame of n classes.
INLINE int rows_of_slice(Index k, Index n)
{
    Index left = n - k * (4 * TILE_ROW_CLASSES);
    return left < 4 * TILE_ROW_CLASSES ? (int)count_tile_rows(left) : 4;
}

#ifdef LSM_FORWARD

INLINE Record record_of_column(const X *held, Index n_rows, const Tile &tile)
{
    Record found;
    found.m = minus_infinity();
    for (int i = 0; i < n_rows * THREAD_ROW_CLASSES; i++)
        found.m = maximum(found.m, load(held[i * TILE_THREADS]));
    found.m = tile.largest(found.m);
    Shift shift = shift_to(found.m);
    int n_largest = 0;
    Fold<5> fold; // LSM_LEAVES <= 16
    for (int a = 0; a < LSM_LEAVES; a++) {
        Sum s = nothing();
        for (int r = 0; r < n_rows; r++) {
            Number e[LEAF_CLASSES];
#pragma unroll
            for (int j = 0; j < LEAF_CLASSES; j++) {
                Number v = load(held[(r * THREAD_ROW_CLASSES + a * LEAF_CLASSES + j) * TILE_THREADS]);
                n_largest += is_largest(v, shift);
                e[j] = exp_below(v, shift);
            }
            s = plus(s, leaf(e));
        }
        fold.push(s);
    }
    found.n_largest = (int)tile.count(n_largest);
    Sum s = tile.sum(fold.result());
    found.below = finish(s.total, s.error, shift);
    return found;
}

#ifdef LSM_COLUMNS_ON_CHIP
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_TILES) log_softmax(FORWARD_ARGUMENTS)
{
    const int n_rows = (int)count_tile_rows(n_classes), n_slices = (int)count_slices(n_classes);
    X *held = (X *)lsm_shared;
    Record *records = (Record *)(held + n_rows * THREAD_ROW_CLASSES * TILE_THREADS);
    Tile tile(records + n_slices * LSM_COLUMNS);
    Column column(blockIdx.x, tile.column, first_frame, n_frames, n_inner, n_classes);
    x += column.outer * x_outer + column.inner;
    y += column.outer * y_outer + column.inner;
    held += threadIdx.x;
    hold(held, x, x_class, 0, n_rows, tile.q, column.n, Of<X>::low());
    for (int k = 0; k < n_slices; k++) {
        Record of =
            record_of_column(held + 4 * k * THREAD_ROW_CLASSES * TILE_THREADS, rows_of_slice(k, n_classes), tile);
        if (tile.q == 0)
            records[k * LSM_COLUMNS + tile.column] = of;
    }
    __syncthreads();
    Normaliser c = merge<8>(records + tile.column, LSM_COLUMNS, n_slices, tile, LSM_TEAM);
    for (int r = 0; r < n_rows; r++) {
#pragma unroll 4
        for (int i = 0; i < THREAD_ROW_CLASSES; i++) {
            Index k = class_of(r, tile.q, i);
            if (k < column.n)
                set(y[k * y_class], normalised(load(held[(r * THREAD_ROW_CLASSES + i) * TILE_THREADS]), c));
        }
    }
}
#endif

#ifdef LSM_COLUMNS_SPLIT
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_TILES) log_softmax_sums(FORWARD_ARGUMENTS)
{
    unsigned n_slices = count_slices(n_classes);
    Index i = blockIdx.x / n_slices, k = blockIdx.x % n_slices;
    X *held = (X *)lsm_shared;
    Tile tile(held + 4 * THREAD_ROW_CLASSES * TILE_THREADS);
    Column column(i, tile.column, first_frame, n_frames, n_inner, n_classes);
    x += column.outer * x_outer + column.inner;
    held += threadIdx.x;
    Index n_here = rows_of_slice(k, n_classes);
    hold(held, x, x_class, 4 * k, n_here, tile.q, column.n, Of<X>::low());
    Record of = record_of_column(held, n_here, tile);
    if (tile.q == 0)
        ((Record *)workspace)[(i * n_slices + k) * LSM_COLUMNS + tile.column] = of;
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_TILES - FEWER_BLOCKS) log_softmax(FORWARD_ARGUMENTS)
{
    unsigned n_slices = count_slices(n_classes), n_tiles = (n_frames + LSM_COLUMNS - 1) / LSM_COLUMNS;
    unsigned n_blocks = gridDim.x / n_tiles, i = blockIdx.x / n_blocks;
    Tile tile(lsm_shared);
    const Record *records = (const Record *)workspace + (Index)i * n_slices * LSM_COLUMNS + tile.column;
    Normaliser c = merge<LSM_DEPTH>(records, LSM_COLUMNS, n_slices, tile, LSM_TEAM);
    Column column(i, tile.column, first_frame, n_frames, n_inner, n_classes);
    x += column.outer * x_outer + column.inner;
    y += column.outer * y_outer + column.inner;
    for (unsigned slice = blockIdx.x % n_blocks; slice < n_slices; slice += n_blocks) {
        const int n_own = rows_of_slice(slice, n_classes) * THREAD_ROW_CLASSES;
        for (int own = 0; own < n_own; own += STEP_CLASSES) {
            Step step((Index)4 * slice, own, tile.q, column.n);
            X held[STEP_CLASSES];
            step.read(held, x, x_class, Of<X>::low());
#pragma unroll
            for (int j = 0; j < STEP_CLASSES; j++)
                if (step.has(j))
                    set(*step.at(j, y, y_class), normalised(load(held[j]), c));
        }
    }
}
#endif

#endif
#endif
