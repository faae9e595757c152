// A reduction: the maximum m of a frame, the number of classes equal to m, and the sum of exp(x - m) of the others.

// Of a slice, in memory.
struct Record {
    Number m;
    int n_largest;
    double below;
};

// How many records are read from the workspace at once.
#if defined(LSM_DEPTH) && !(defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750)
const int UNROLL_RECORDS = 4;
#else
const int UNROLL_RECORDS = 1;
#endif

struct Exponentials {
    typedef Record Partial;
    struct Found { // in a slice; the same in all its threads
        Number m;
        int n_largest;
        Sum sum; // of exp_below
    };
    struct Whole { // of a frame
        Number m;
        Index n_largest;
        double below;
    };
    static INLINE X filler() { return Of<X>::low(); }

    struct Term { // of the sum, except for the largest, which are counted
        static const bool is_second_pass = true; // over the elements
        const Shift &shift;
        int &n_largest;
        INLINE Number operator()(Number x) const
        {
            n_largest += is_largest(x, shift);
            return exp_below(x, shift);
        }
    };
    template <class Slice> static INLINE Found found_in(Slice slice, Shift &shift)
    {
        Found found;
        found.m = slice.largest();
        shift = shift_to(found.m);
        int n_largest = 0;
        Term term = {shift, n_largest};
        typename Slice::Sums sums = slice.sums_of(term);
        found.n_largest = slice.count(n_largest);
        found.sum = slice.fold(sums);
        return found;
    }
    template <class Slice> static INLINE Found found_in(Slice slice)
    {
        Shift shift;
        return found_in(slice, shift);
    }
    static INLINE Record record_of(const Found &found, const Shift &shift)
    {
        Record record = {found.m, found.n_largest, finish(found.sum.total, found.sum.error, shift)};
        return record;
    }
    template <class Slice> static INLINE Record partial_in(Slice slice)
    {
        Shift shift;
        Found found = found_in(slice, shift);
        return record_of(found, shift);
    }
    static INLINE Whole whole_of(const Found &found)
    {
        Record of = record_of(found, shift_to(found.m));
        Whole whole = {of.m, of.n_largest, of.below};
        return whole;
    }

    // The contribution of a slice to the sum of its frame, whose maximum is m.
    static INLINE double brought_to(Record of, Number m)
    {
        if (of.m == m)
            return of.below;
        if (of.m == minus_infinity())
            return of.below; // 0, or NaN
        double a = as_double(of.m), b = as_double(m), d = a - b, v = d - a;
        double e = (a - (d - v)) + (-b - v);
        return (of.n_largest + of.below) * exp_of_difference(d, e);
    }

    // From the records of a frame's slices, `step` apart.
    template <int depth, class AnyTeam>
    static INLINE Whole merge(const Record *records, Index step, Index n_slices, const AnyTeam &team, int n_team)
    {
        Share mine(n_slices, team.q, n_team);
        Number m = minus_infinity();
#pragma unroll UNROLL_RECORDS
        for (Index k = mine.first; k < mine.last; k++)
            m = maximum(m, records[k * step].m);
        m = team.largest(m);
        Index n_largest = 0;
        Fold<depth> fold;
#pragma unroll UNROLL_RECORDS
        for (Index k = mine.first; k < mine.last; k++) {
            Record of = records[k * step];
            n_largest += of.m == m ? of.n_largest : 0;
            Sum s = {brought_to(of, m), 0};
            fold.push(s);
        }
        Sum s = team.sum(fold.result());
        Whole whole = {m, team.count(n_largest), s.total + s.error};
        return whole;
    }
};
