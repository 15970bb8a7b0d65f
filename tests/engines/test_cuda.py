"""Device memory through libcudart and through pycuda, against stand-ins of both."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cuda_stand_in import Cudart
from hypothesis import given, settings
from hypothesis import strategies as st
from pycuda_stand_in import PycudaDriver

from edgekit.engines import cuda, cuda_runtime
from edgekit.engines.cuda import Device
from edgekit.engines.cuda_pycuda import PycudaMemory
from edgekit.engines.cuda_runtime import RuntimeMemory, error_of
from edgekit.errors import EdgekitError, InputError, MissingPackageError, ResourceError


def device_on(library: Cudart) -> Device:
    return Device(library=library, memory=RuntimeMemory(library))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(["float32", "float16", "int64", "uint8", "bool"]),
)
def test_what_goes_to_the_device_comes_back(shape: list[int], dtype: str) -> None:
    library = Cudart()
    rng = np.random.default_rng(0)
    sent = (rng.random(shape) * 2).astype(dtype)
    with device_on(library) as device:
        address = device.allocate(sent.nbytes)
        host = device.pinned(sent.nbytes)[: sent.nbytes].view(sent.dtype).reshape(sent.shape)
        np.copyto(host, sent)
        device.to_device(address, host)
        back = device.pinned(sent.nbytes)[: sent.nbytes].view(sent.dtype).reshape(sent.shape)
        device.to_host(back, address)
        device.synchronize()
        np.testing.assert_array_equal(back, sent)
        assert device.memory_info() == (3 << 30, 8 << 30)
    assert library.left() == (0, 0, 0)


def test_a_buffer_can_be_given_back_early_and_closing_twice_is_nothing() -> None:
    library = Cudart()
    device = device_on(library)
    address = device.allocate(8)
    device.free(address)
    device.release(device.pinned(8))
    assert library.left() == (0, 1, 0)
    device.close()
    device.close()
    assert library.left() == (0, 0, 0)


def test_work_that_fails_while_it_is_captured_leaves_no_open_capture() -> None:
    library = Cudart()
    with device_on(library) as device:

        def work() -> None:
            raise InputError("no")

        with pytest.raises(InputError, match="no"):
            device.capture(work)
        device.synchronize()  # the stand-in refuses this while a capture is open
    assert library.left() == (0, 0, 0)


def test_a_graph_repeats_its_work() -> None:
    library = Cudart()
    with device_on(library) as device:
        done: list[int] = []
        from tensorrt_stand_in import CAPTURED

        launch = device.capture(lambda: CAPTURED[-1].append(lambda: done.append(1)))
        launch()
        launch()
        assert done == [1, 1]
    assert library.left() == (0, 0, 0)


def test_versions_are_read_as_people_write_them() -> None:
    found = cuda_runtime.versions(Cudart())
    assert (found.driver, found.runtime) == ("12.6", "11.4")


def test_the_real_library_has_every_function_and_says_what_is_missing() -> None:
    library = cuda_runtime.find_library()
    if library is None:
        pytest.skip("no libcudart is on this machine")
    for name in dir(Cudart()):
        if name.startswith("cuda"):
            assert hasattr(library, name), name
    found = cuda_runtime.versions(library)
    assert re.fullmatch(r"\d+\.\d+", found.runtime)
    if found.driver != "none":
        pytest.skip("a driver is here")
    with pytest.raises(MissingPackageError, match="no GPU that CUDA can use"):
        RuntimeMemory(library)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(2, ResourceError), (35, MissingPackageError), (100, MissingPackageError), (700, InputError)],
)
def test_codes_are_translated_to_who_must_act(code: int, kind: type[EdgekitError]) -> None:
    error = error_of("cudaMalloc", code, "words")
    assert isinstance(error, kind)
    assert error.got == f"cudaMalloc: words ({code})"


def test_an_old_runtime_without_a_function_is_named() -> None:
    class Old:
        pass

    with pytest.raises(MissingPackageError, match="older than edgekit knows") as error:
        cuda_runtime.check(Old(), "cudaGraphInstantiateWithFlags")
    assert "cudaGraphInstantiateWithFlags" in error.value.got


def test_without_libcudart_the_hint_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_runtime, "_candidates", lambda: ["libnothing.so.0"])
    monkeypatch.setitem(__import__("sys").modules, "pycuda", None)
    with pytest.raises(MissingPackageError, match="CUDA runtime is not on this machine") as error:
        Device()
    assert "JetPack" in error.value.hint


def test_pycuda_gives_the_same_and_leaves_the_context_as_it_was() -> None:
    driver = PycudaDriver()
    device = Device(memory=PycudaMemory(driver))
    assert driver.pushed == 1
    with device:
        sent = np.arange(6, dtype=np.float32).reshape(2, 3)
        address = device.allocate(sent.nbytes)
        host = device.pinned(sent.nbytes)[: sent.nbytes].view(sent.dtype).reshape(sent.shape)
        np.copyto(host, sent)
        device.to_device(address, host)
        back = device.pinned(sent.nbytes)[: sent.nbytes].view(sent.dtype).reshape(sent.shape)
        device.to_host(back, address)
        device.synchronize()
        np.testing.assert_array_equal(back, sent)
        assert device.memory_info() == (1, 2)
        with pytest.raises(ResourceError, match="memory ran out"):
            device.allocate(2 << 30)
    assert driver.pushed == 0
    assert driver.blocks == {}


def test_pycuda_without_a_gpu_is_a_missing_one() -> None:
    driver = PycudaDriver()
    driver.absent = True
    with pytest.raises(MissingPackageError, match="no GPU that CUDA can use"):
        PycudaMemory(driver)


def test_without_libcudart_pycuda_runs_and_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_library", lambda: None)
    with (
        Device(memory=PycudaMemory(PycudaDriver())) as device,
        pytest.raises(MissingPackageError, match="needs libcudart"),
    ):
        device.capture(lambda: None)
