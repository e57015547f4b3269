"""What stands in for the models of the examples when there is no key."""

from perdure.model import ModelRequest
from perdure.testing import Line, calls, says


def research(request: ModelRequest) -> Line:
    """The swarm: its instructions tell who is speaking."""
    # An agent that gets the task again remembers its visits, so the newest prompt is not the first message.
    told = "\n".join(message.text for message in request.messages if message.role == "user")
    handed = "handoff_to_agent"
    if request.instructions.startswith("Find"):
        topic = "springs" if "Handoff Message" in told else "tides"
        if request.step == 1:
            return calls("search", topic=topic)
        found = request.messages[-1].text
        return calls(handed, agent_name="sceptic", message=f"{topic}: {found}", context={topic: found})
    if request.instructions.startswith("Ask"):
        if "Full and new moon" not in told:
            return calls(handed, agent_name="finder", message="And when is the tide highest?")
        return calls(handed, agent_name="writer", message="That will do: write it down.")
    return says("The Moon makes the tides, helped by the Sun most of all at full and new moon.")


def review(request: ModelRequest) -> Line:
    """The graph: an author whose second draft is good, and three reviewers."""
    if request.instructions.startswith("Write"):
        drafts = sum(message.role == "assistant" for message in request.messages)
        return says(f"Draft {drafts + 1}")
    good = "Draft 2" in request.messages[-1].text
    return calls("final_answer", verdict="publish" if good else "revise", why="good" if good else "too short")


def support(request: ModelRequest) -> Line:
    """The session: what was said last, and whether the tools have been asked."""
    last = request.messages[-1]
    if last.role == "tool":
        return says(f"I looked: {last.tool_results[-1].text}.")
    if "money back" in last.text:
        return calls("refund", order_id="W1", cents=4900)
    return calls("order_status", order_id="W1")


def debate(request: ModelRequest) -> Line:
    """The debate: speakers with a mind of their own, who are convinced by Kepler in the second round."""
    name = request.instructions.removeprefix("You are ").partition(".")[0]
    heard = request.messages[-1].text
    if name.startswith("You judge"):
        moon = heard.count("the Moon")
        return says(f"The Moon, by {moon} to {3 - moon}." if moon > 1 else "Undecided.")
    if name == "kepler" or "kepler: the Moon" in heard:
        return says("the Moon")
    return says("the motion of the Earth" if name == "galileo" else "gravity, I suppose")
