"""Results of one step: shown so that together they fit, and readable to their last byte."""

from hypothesis import given
from hypothesis import strategies as st

from perdure.context import SlidingWindow
from perdure.fitting import LEAST_SHOWN_TOKENS, fit_results
from perdure.messages import Message, Text, ToolResult
from perdure.tokens import text_tokens
from perdure.wire.results import RunResult
from perdure.workflows.engine.calls import open_calls
from perdure.workflows.engine.events import CallReturned, CallsStarted, ChildEnded, StepBegan
from perdure.workflows.engine.fold import fold

from .runs import NOW, answered, begun, call, result, tool_spec

WORDS = st.sampled_from(["word ", "\u00e4\u4e2d\u6587 ", "0123456789abcdef"])
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([1, 20, 300, 900])), min_size=1, max_size=8)


def step(texts: list[str]) -> list[Message]:
    """Results of a step, of which the last came later."""
    results = [
        ToolResult(call_id=f"call-1-{n}", name="work", content=[Text(text=text)])
        for n, text in enumerate(texts[1:], 1)
    ]
    late = Message(role="user", parts=[Text(text=texts[0])], answer_of="late-1")
    return [Message(role="tool", parts=list(results)), late]


def shown_texts(messages: tuple[Message, ...]) -> list[str]:
    texts = [result.text for message in messages for result in message.tool_results]
    return [*(message.text for message in messages if message.answer_of), *texts]


@given(texts=TEXTS, most=st.integers(200, 3000))
def test_results_of_a_step_fit_together(texts: list[tuple[str, int]], most: int) -> None:
    """What is shown fits the bound, or is the least of each; what is small is whole, and large ones are cut alike."""
    whole = [word * count for word, count in texts]
    messages = step(whole)
    shown = shown_texts(fit_results(messages, most))
    sizes = [text_tokens(text) for text in whole]
    cut = [size for size, before, after in zip(sizes, whole, shown, strict=True) if before != after]
    kept = [size for size, before, after in zip(sizes, whole, shown, strict=True) if before == after]
    assert sum(map(text_tokens, shown)) <= max(most, LEAST_SHOWN_TOKENS * len(whole))
    assert bool(cut) == (sum(sizes) > most and max(sizes) > LEAST_SHOWN_TOKENS)
    assert not cut or max(kept, default=0) <= min(cut), "the smaller is never cut for the larger"


@given(text=st.text(min_size=2000, max_size=4000), most=st.integers(150, 400))
def test_cut_result_is_readable_to_its_end(text: str, most: int) -> None:
    """By the marks alone a model reads a cut result to its last byte, and the run itself answers."""
    state = answered(begun(result_preview_bytes=256), call("work"))
    state = fold(state, CallsStarted(ids=("call-1-1",)))
    text = text.encode(errors="replace").decode()
    state = fold(state, CallReturned(result=result("call-1-1", text=text)))
    [shown] = fit_results(state.messages[-1:], most)[0].tool_results
    if shown.text == text:
        return
    read, _, mark = shown.text.rpartition("\n[")
    for _ in range(200):
        offset = int(mark.rpartition("offset")[2].strip("= )]"))
        asked = call("read_result", result="call-1-1", offset=offset)
        [made] = open_calls(state, [asked], NOW).calls
        assert (made.state, made.result is not None) == ("done", True), "no activity reads it"
        assert made.result is not None
        piece, _, mark = made.result.text.rpartition("\n[")
        if "bytes follow, from offset" not in mark:
            read += made.result.text
            break
        read += piece
    assert read == text


def test_late_answer_is_cut_and_readable() -> None:
    """The answer of an agent that came after its step shares its bound, and its rest can be read by its key."""
    helper = tool_spec("helper", kind="agent", agent="helper", collect="completion")
    state = answered(begun(tools=(helper,), context=SlidingWindow(tokens=2000)), call("helper", input="go"))
    state = fold(state, CallsStarted(ids=("call-1-1",)))
    [child] = state.tree.children
    long = result("call-1-1", text="fact after fact. " * 500 + "the end", spilled="blob-1")
    outcome = RunResult(agent="helper", output="", stop_reason="end_turn", cost_microusd=0)
    state = fold(state, ChildEnded(key=child.key, outcome=outcome, at=NOW, result=long))
    assert state.transcript.spilled, "the model is offered the tool that reads on"
    state = fold(state, StepBegan())
    late = fit_results(state.messages, 1000)[-1]
    assert f'read_result(result="{child.key}"' in late.text
    asked = call("read_result", result=child.key, offset=len("fact after fact. " * 500))
    [made] = open_calls(state, [asked], NOW).calls
    assert made.result is not None
    assert made.result.text.endswith("the end")


def test_small_steps_are_shown_as_they_are() -> None:
    messages = step(["ok"] * 50)
    assert list(fit_results(messages, 4000)) == messages


@given(texts=TEXTS, most=st.integers(200, 3000))
def test_kept_cut_equals_a_new_one(texts: list[tuple[str, int]], most: int) -> None:
    """The next call gets the same objects; another bound cuts anew."""
    messages = step([word * count for word, count in texts])
    for bound in (most, most // 2, most):
        kept = fit_results(messages, bound, keep=True)
        assert kept == fit_results(messages, bound)
        again = fit_results(messages, bound, keep=True)
        assert all(one is other for one, other in zip(kept, again, strict=True))
