"""Let torch-tensorrt be imported and asked without a GPU. The only place that answers for one."""

import pytest
import torch


@pytest.fixture(scope="module")
def device_queries():
    """Answer the three questions that torch-tensorrt asks the driver on import and before it partitions a graph.

    Where there is a GPU, it answers itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            gigabytes = 32 << 30
            patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
            patch.setattr(torch.cuda, "current_device", lambda: 0)
            patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (gigabytes, gigabytes))
        yield


class _Plan:
    """Stand for an engine that nothing here can load: it gives back what it was made of."""

    def __init__(self, plan):
        self.plan = bytes(plan)

    def serialize(self):
        return self.plan

    def get_aliased_input_tensor(self, name):
        return None


class _Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return _Plan(plan)


@pytest.fixture
def no_deserialising(device_queries, monkeypatch):
    """Let torch-tensorrt-rtx build a plan without a driver: it would load each plan only to write it out again.

    Skips where torch-tensorrt is the stock one, which cannot build without a GPU.
    """
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(tensorrt_rtx, "Runtime", _Runtime)
