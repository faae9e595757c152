from lsm.testing import BackendConformance


class TestMinimal(BackendConformance):
    backend = "minimal"
