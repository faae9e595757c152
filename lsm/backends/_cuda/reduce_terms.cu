// A reduction: the sum of the numbers of a frame. Sums of float64 may overflow where the result of an operation does
// not: those that do are made again, scaled by 2**-64.

#define SMALLER 5.421010862427522e-20

// Of a slice, in memory.
struct Part {
    Sum sum;
    int is_smaller;
};

struct Terms {
    typedef Part Partial;
    typedef Part Found;
    typedef Part Whole;
    static INLINE X filler()
    {
        const X zero = {0};
        return zero;
    }
    static INLINE Part whole_of(const Part &found) { return found; }

    static INLINE bool left_the_range(Sum s) { return sizeof(Number) == 8 && !is_finite(s.total + s.error); }
    static INLINE Sum made_smaller(Sum s)
    {
        s.total *= SMALLER;
        s.error *= SMALLER;
        return s;
    }

    struct Term {
        static const bool is_second_pass = false; // over the elements
        double scale;
        INLINE double operator()(Number x) const { return as_double(x) * scale; }
    };
    template <class Slice> static INLINE Sum sum_of(Slice slice, double scale)
    {
        Term term = {scale};
        return slice.fold(slice.sums_of(term));
    }
    template <class Slice> static INLINE Part found_in(Slice slice)
    {
        Part part;
        part.sum = sum_of(slice, 1);
        part.is_smaller = false;
        if (sizeof(Number) == 8 && slice.is_any(left_the_range(part.sum))) {
            Sum smaller = sum_of(slice, SMALLER);
            if (left_the_range(part.sum)) {
                part.sum = smaller;
                part.is_smaller = true;
            }
        }
        return part;
    }

    template <class Slice> static INLINE Part partial_in(Slice slice) { return found_in(slice); }

    template <int depth, class AnyTeam>
    static INLINE Sum fold_parts(const Part *parts, Index step, Share mine, const AnyTeam &team, bool smaller)
    {
        Fold<depth> fold;
        for (Index k = mine.first; k < mine.last; k++) {
            Part of = parts[k * step];
            fold.push(smaller && !of.is_smaller ? made_smaller(of.sum) : of.sum);
        }
        return team.sum(fold.result());
    }

    // From the parts of a frame's slices, `step` apart.
    template <int depth, class AnyTeam>
    static INLINE Part merge(const Part *parts, Index step, Index n_slices, const AnyTeam &team, int n_team)
    {
        Share mine(n_slices, team.q, n_team);
        bool smaller = false;
        if (sizeof(Number) == 8) {
            Index n_smaller = 0;
            for (Index k = mine.first; k < mine.last; k++)
                n_smaller += parts[k * step].is_smaller;
            smaller = team.count(n_smaller) != 0;
        }
        Sum s = fold_parts<depth>(parts, step, mine, team, smaller);
        if (sizeof(Number) == 8) { // both sums, so that all threads of a block take the same branch
            Sum again = fold_parts<depth>(parts, step, mine, team, true);
            if (left_the_range(s)) {
                s = again;
                smaller = true;
            }
        }
        Part part = {s, smaller};
        return part;
    }
};
