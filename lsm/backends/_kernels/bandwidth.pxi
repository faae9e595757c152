# Memory bandwidth for benchmarks: a copy and an add, with nontemporal stores.


def stream_copy(const unsigned char[::1] x, unsigned char[::1] y, int n_threads):
    """Read all of x and write all of y with n_threads threads; y = x over their common length."""
    cdef Py_ssize_t n = max(x.shape[0], y.shape[0]), n_piece = 65536, n_pieces = (n + n_piece - 1) // n_piece, i
    cdef Py_ssize_t first_x, first_y, n_x, n_y
    cdef const char* source = <const char*> &x[0]
    cdef char* target = <char*> &y[0]
    for i in prange(n_pieces, schedule="static", num_threads=n_threads, nogil=True):
        first_x = x.shape[0] // n_pieces * i
        first_y = y.shape[0] // n_pieces * i
        n_x = x.shape[0] - first_x if i == n_pieces - 1 else x.shape[0] // n_pieces
        n_y = y.shape[0] - first_y if i == n_pieces - 1 else y.shape[0] // n_pieces
        lsm_stream_through(target + first_y, n_y, source + first_x, n_x)
    lsm_stream_fence()


def stream_add(const unsigned char[::1] a, const unsigned char[::1] b, unsigned char[::1] out, int n_threads):
    """out = a + b in float32, with n_threads threads."""
    cdef Py_ssize_t n = out.shape[0] // 4, n_piece = 16384, i
    cdef const float* p = <const float*> &a[0]
    cdef const float* q = <const float*> &b[0]
    cdef float* target = <float*> &out[0]
    for i in prange((n + n_piece - 1) // n_piece, schedule="static", num_threads=n_threads, nogil=True):
        lsm_stream_add(target + i * n_piece, p + i * n_piece, q + i * n_piece, min(n_piece, n - i * n_piece))
    lsm_stream_fence()
