"""How far a build is, from phases within phases."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.engines.trt.progress import PhaseTree


def test_a_phase_is_worth_one_step_of_the_one_around_it() -> None:
    tree = PhaseTree()
    tree.start("build", None, 4)
    assert (tree.name, tree.fraction) == ("build", 0.0)
    tree.start("inner", "build", 2)
    tree.step("inner", 0)
    assert (tree.name, tree.fraction) == ("inner", 1 / 8)
    tree.finish("inner")
    tree.step("build", 0)
    assert tree.fraction == 1 / 4
    tree.start("next", "build", 10)
    tree.step("next", 4)
    assert tree.fraction == (1 + 0.5) / 4


def test_a_phase_that_was_never_finished_ends_with_the_next_of_its_parent() -> None:
    tree = PhaseTree()
    tree.start("build", None, 2)
    tree.start("lost", "build", 2)
    tree.start("next", "build", 2)
    assert tree.name == "next"
    tree.finish("build")
    assert tree.name == ""


EVENTS = st.one_of(
    st.tuples(
        st.just("start"), st.sampled_from("abc"), st.sampled_from([None, "a", "b", "zzz"]),
        st.integers(-1, 5),
    ),
    st.tuples(st.just("step"), st.sampled_from("abcd"), st.integers(0, 9)),
    st.tuples(st.just("finish"), st.sampled_from("abcd")),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_it_never_falls_and_never_says_that_it_is_done(events: list[tuple[object, ...]]) -> None:
    tree = PhaseTree()
    last = 0.0
    for name, *arguments in events:
        getattr(tree, str(name))(*arguments)
        assert last <= tree.fraction < 1
        last = tree.fraction
