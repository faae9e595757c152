// The kernels of a module: LSM_OP, named LSM_NAME, over the frames of one family.

#if LSM_INPUTS == 2
#define IF_TWO(...) __VA_ARGS__,
#define B_OR_A(b, a) b
#else
#define IF_TWO(...)
#define B_OR_A(b, a) a
#endif

#define JOIN_EXPANDED(a, b) a##b
#define JOIN(a, b) JOIN_EXPANDED(a, b)
#define KERNEL(suffix, traversal, ...)                                                                                \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) JOIN(LSM_NAME, suffix)(                                 \
        const X *a, IF_TWO(const X *b) Y *to, void *workspace, Index n_outer, Index n_classes, Index n_inner,         \
        Index a_outer, Index a_class, IF_TWO(Index b_outer, Index b_class) Index to_outer, Index to_class,            \
        Index first_frame, Index n_frames)                                                                            \
    {                                                                                                                 \
        Call call = {a, B_OR_A(b, a), to, workspace, n_classes, n_inner, a_outer, a_class, B_OR_A(b_outer, a_outer),  \
                     B_OR_A(b_class, a_class), to_outer, to_class, first_frame, n_frames};                            \
        traversal<LSM_OP>(call);                                                                                      \
    }

static_assert(LSM_OP::reads_two == (LSM_INPUTS == 2) && LSM_OP::limits_range == LSM_LIMITS_RANGE, "see OPS in plan.py");

#if defined(LSM_GROUP)
KERNEL(, write_group, 128, 4)
#elif defined(LSM_SHARED)
KERNEL(, write_shared, LSM_THREADS, LSM_BLOCKS)
#elif defined(LSM_SPLIT)
KERNEL(_sums, sum_split, 256, 2)
KERNEL(, write_split, 256, 2 - FEWER_BLOCKS)
#if LSM_LIMITS_RANGE
KERNEL(_ends, end_split, 256, 2 - FEWER_BLOCKS)
#endif
#elif defined(LSM_COLUMNS_ON_CHIP)
KERNEL(, write_columns, TILE_THREADS, RESIDENT_TILES)
#elif defined(LSM_COLUMNS_SPLIT)
KERNEL(_sums, sum_columns, TILE_THREADS, RESIDENT_TILES)
KERNEL(, write_split_columns, TILE_THREADS, RESIDENT_TILES - FEWER_BLOCKS)
#if LSM_LIMITS_RANGE
KERNEL(_ends, end_split_columns, TILE_THREADS, RESIDENT_TILES - FEWER_BLOCKS)
#endif
#endif
