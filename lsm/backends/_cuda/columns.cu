// Adjacent frames (inner > 1): one block per tile of frames, one team of threads per frame.
//
// Columns are numbered over outer and inner together, so that tiles are full even if inner is small. A thread reads the
// same positions of each row of its column and keeps those of input a in its own part of shared memory; b is read once.

#if defined(LSM_COLUMNS)

typedef Team<LSM_COLUMNS, LSM_TEAM> Tile;
const int TILE_THREADS = LSM_COLUMNS * LSM_TEAM;
// What the registers of a multiprocessor allow. Shared memory holds only one large tile.
const int RESIDENT_TILES = TILE_THREADS > 256 ? 1 : sizeof(Number) == 4 ? 3 : 2;
const int THREAD_ROW_CLASSES = LSM_LEAVES * LEAF_CLASSES; // of one thread in each row
const int TILE_ROW_CLASSES = LSM_TEAM * THREAD_ROW_CLASSES; // 64 leaves, or all there are

// The class at position i of this thread in a row.
INLINE Index class_of(Index row, int q, int i) { return (row * LSM_TEAM + q) * THREAD_ROW_CLASSES + i; }
INLINE Index count_tile_rows(Index n) { return (n + TILE_ROW_CLASSES - 1) / TILE_ROW_CLASSES; }

// The number of rows in slice k of a frame of n classes.
INLINE int rows_of_slice(Index k, Index n)
{
    Index left = n - k * (4 * TILE_ROW_CLASSES);
    return left < 4 * TILE_ROW_CLASSES ? (int)count_tile_rows(left) : 4;
}

// Move to a thread's column of a tile, and return its number of classes: 0 beyond the last column.
INLINE Index move_to_column(Call &c, Index tile, int column)
{
    Index i = tile * LSM_COLUMNS + column;
    Index n = i < c.n_frames ? c.n_classes : 0;
    c.move_to((c.first_frame + i) / c.n_inner, (c.first_frame + i) % c.n_inner);
    return n;
}

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
        UNROLL for (int j = 0; j < STEP_CLASSES; j++)
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

// A slice of a column in shared memory.
struct SliceOfColumn {
    const X *held;
    Index n_rows;
    const Tile &tile;

    INLINE Number largest() const
    {
        Number m = minus_infinity();
        for (int i = 0; i < n_rows * THREAD_ROW_CLASSES; i++)
            m = maximum(m, load(held[i * TILE_THREADS]));
        return tile.largest(m);
    }
    INLINE int count(int n) const { return (int)tile.count(n); }
    INLINE bool is_any(bool x) const { return __syncthreads_or(x); }

    typedef Fold<5> Sums; // LSM_LEAVES <= 16
    template <class Term> INLINE Sums sums_of(Term term) const
    {
        Sums fold;
        for (int a = 0; a < LSM_LEAVES; a++) {
            Sum s = nothing();
            for (int r = 0; r < n_rows; r++) {
                decltype(term(Number())) e[LEAF_CLASSES];
                UNROLL for (int j = 0; j < LEAF_CLASSES; j++)
                    e[j] = term(load(held[(r * THREAD_ROW_CLASSES + a * LEAF_CLASSES + j) * TILE_THREADS]));
                s = plus(s, leaf(e));
            }
            fold.push(s);
        }
        return fold;
    }
    INLINE Sum fold(const Sums &sums) const { return tile.sum(sums.result()); }
};

// Write the results of some classes; returns the maximum of their b, or NaN.
template <class Op>
INLINE Number write_step(const Step &step, const Call &c, const X (&a)[STEP_CLASSES], const X (&b)[STEP_CLASSES],
                         const typename Op::Parameters &p)
{
    const int n = !Op::reads_two ? 1 : sizeof(Number) == 8 ? 2 : 4; // at once; more would take too many registers
    Number highest = minus_infinity();
    UNROLL for (int first = 0; first < STEP_CLASSES; first += n) {
        Number r[n];
        if constexpr (!Op::reads_two) {
            r[0] = Op::result(load(a[first]), p);
        } else {
            Number v[n];
            UNROLL for (int j = 0; j < n; j++) {
                r[j] = load(a[first + j]);
                v[j] = load(b[first + j]);
            }
            Number here = highest_of(v);
            highest = higher(highest, here);
            Op::results(r, v, p, here);
        }
        UNROLL for (int j = 0; j < n; j++)
            if (step.has(first + j))
                set(*step.at(first + j, c.to, c.to_class), r[j]);
    }
    return highest;
}

// Combine the marks of a column's threads.
INLINE int marks_of_column(int marks, const Tile &tile)
{
    Index n = tile.count((marks & 1 ? 1 : 0) + (marks & 2 ? (Index)1 << 32 : 0));
    return (n & 0xffffffff ? 1 : 0) | (n >> 32 ? 2 : 0);
}

INLINE void write_nan_rows(const Call &c, Index first_row, Index n_rows, int q, Index n)
{
    for (Index r = first_row; r < first_row + n_rows; r++) {
        for (int i = 0; i < THREAD_ROW_CLASSES; i++) {
            Index k = class_of(r, q, i);
            if (k < n)
                set(c.to[k * c.to_class], number(not_a_number()));
        }
    }
}

#ifdef LSM_COLUMNS_ON_CHIP
template <class Op> INLINE void write_columns(Call c)
{
    typedef typename Op::Partial Partial;
    const int n_rows = (int)count_tile_rows(c.n_classes), n_slices = (int)count_slices(c.n_classes);
    X *held = (X *)lsm_shared;
    Partial *partials = (Partial *)(held + n_rows * THREAD_ROW_CLASSES * TILE_THREADS);
    Tile tile(partials + n_slices * LSM_COLUMNS);
    Index n = move_to_column(c, blockIdx.x, tile.column);
    held += threadIdx.x;
    hold(held, c.a, c.a_class, 0, n_rows, tile.q, n, Op::filler());
    for (int k = 0; k < n_slices; k++) {
        SliceOfColumn slice = {held + 4 * k * THREAD_ROW_CLASSES * TILE_THREADS, rows_of_slice(k, c.n_classes), tile};
        Partial of = Op::partial_in(slice);
        if (tile.q == 0)
            partials[k * LSM_COLUMNS + tile.column] = of;
    }
    __syncthreads();
    typename Op::Parameters p =
        Op::parameters(Op::template merge<8>(partials + tile.column, LSM_COLUMNS, n_slices, tile, LSM_TEAM), false);
    Number highest = minus_infinity();
    if constexpr (!Op::reads_two) { // nothing is loaded from global memory: no steps
        for (int r = 0; r < n_rows; r++) {
#pragma unroll 4
            for (int i = 0; i < THREAD_ROW_CLASSES; i++) {
                Index k = class_of(r, tile.q, i);
                if (k < n)
                    set(c.to[k * c.to_class], Op::result(load(held[(r * THREAD_ROW_CLASSES + i) * TILE_THREADS]), p));
            }
        }
    } else {
        for (int own = 0; own < n_rows * THREAD_ROW_CLASSES; own += STEP_CLASSES) {
            Step step(0, own, tile.q, n);
            X of_b[STEP_CLASSES];
            step.read(of_b, c.b, c.b_class, Of<X>::low());
            X of_a[STEP_CLASSES];
            UNROLL for (int j = 0; j < STEP_CLASSES; j++)
                of_a[j] = THREAD_ROW_CLASSES % STEP_CLASSES == 0 || own + j < n_rows * THREAD_ROW_CLASSES ?
                              held[(own + j) * TILE_THREADS] :
                              Op::filler();
            highest = higher(highest, write_step<Op>(step, c, of_a, of_b, p));
        }
    }
    if constexpr (Op::limits_range)
        if (Op::makes_nan(marks_of_column(Op::marks_of(highest), tile)))
            write_nan_rows(c, 0, n_rows, tile.q, n);
}
#endif

#ifdef LSM_COLUMNS_SPLIT
template <class Op> INLINE void sum_columns(Call c)
{
    unsigned n_slices = count_slices(c.n_classes);
    Index i = blockIdx.x / n_slices, k = blockIdx.x % n_slices;
    X *held = (X *)lsm_shared;
    Tile tile(held + 4 * THREAD_ROW_CLASSES * TILE_THREADS);
    Index n = move_to_column(c, i, tile.column);
    held += threadIdx.x;
    Index n_here = rows_of_slice(k, c.n_classes);
    hold(held, c.a, c.a_class, 4 * k, n_here, tile.q, n, Op::filler());
    SliceOfColumn slice = {held, n_here, tile};
    typename Op::Partial of = Op::partial_in(slice);
    if (tile.q == 0)
        ((typename Op::Partial *)c.workspace)[(i * n_slices + k) * LSM_COLUMNS + tile.column] = of;
}

// The tile of a block in a grid with the same number of blocks per tile, and the place of a column's partial results.
struct TileInGrid {
    unsigned n_slices, n_tiles, n_blocks, tile, slice;
    INLINE TileInGrid(const Call &c)
        : n_slices(count_slices(c.n_classes)), n_tiles((c.n_frames + LSM_COLUMNS - 1) / LSM_COLUMNS),
          n_blocks(gridDim.x / n_tiles), tile(blockIdx.x / n_blocks), slice(blockIdx.x % n_blocks)
    {
    }
    INLINE Index place(int column) const { return (Index)tile * n_slices * LSM_COLUMNS + column; }
    template <class Partial> INLINE int *marks(Partial *partials) const // stored after them, as for rows
    {
        return (int *)(partials + (Index)n_tiles * n_slices * LSM_COLUMNS);
    }
};

template <class Op> INLINE void write_split_columns(Call c)
{
    TileInGrid in(c);
    Tile tile(lsm_shared);
    typename Op::Partial *partials = (typename Op::Partial *)c.workspace;
    Index place = in.place(tile.column);
    int *marks = in.marks(partials) + place;
    typename Op::Parameters p = Op::parameters(
        Op::template merge<LSM_DEPTH>(partials + place, LSM_COLUMNS, in.n_slices, tile, LSM_TEAM), false);
    Index n = move_to_column(c, in.tile, tile.column);
    for (unsigned slice = in.slice; slice < in.n_slices; slice += in.n_blocks) {
        Number highest = minus_infinity();
        const int n_own = rows_of_slice(slice, c.n_classes) * THREAD_ROW_CLASSES;
        for (int own = 0; own < n_own; own += STEP_CLASSES) {
            Step step((Index)4 * slice, own, tile.q, n);
            X of_a[STEP_CLASSES], of_b[STEP_CLASSES];
            step.read(of_a, c.a, c.a_class, Op::filler());
            if (Op::reads_two)
                step.read(of_b, c.b, c.b_class, Of<X>::low());
            highest = higher(highest, write_step<Op>(step, c, of_a, of_b, p));
        }
        if constexpr (Op::limits_range) {
            int found = marks_of_column(Op::marks_of(highest), tile);
            if (tile.q == 0)
                marks[(Index)slice * LSM_COLUMNS] = found;
        }
    }
}

template <class Op> INLINE void end_split_columns(Call c)
{
    TileInGrid in(c);
    Tile tile(lsm_shared);
    const int *marks = in.marks((typename Op::Partial *)c.workspace);
    Index place = in.place(tile.column);
    int found = 0;
    for (Index k = tile.q; k < in.n_slices; k += LSM_TEAM)
        found |= marks[place + k * LSM_COLUMNS];
    bool is_nan = Op::makes_nan(marks_of_column(found, tile));
    Index n = move_to_column(c, in.tile, tile.column);
    for (unsigned slice = in.slice; is_nan && slice < in.n_slices; slice += in.n_blocks)
        write_nan_rows(c, (Index)4 * slice, rows_of_slice(slice, c.n_classes), tile.q, n);
}
#endif

#endif
