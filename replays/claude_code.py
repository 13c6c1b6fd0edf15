"""Claude Code: a session's JSON lines as a run.

Owns what each kind of line means: prompts, replies in pieces, tool calls and results, compactions, side chains. It
reads one line at a time. A line that says nothing about the conversation is counted by its type, in the last event; a line
that is no JSON refuses the file.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from treering.events.catalogue import Failure, Usage
from treering.events.errors import UsageError
from treering.replays.telling import (
    Fact,
    Teller,
    as_dict,
    as_int,
    as_text,
    began,
    parse_json,
    passed_over,
    spawned,
    when_ms,
)

__all__ = ["session_facts"]

_LONGEST_LINE = 64 * 2**20
_AGENT_TOOLS = ("Task", "Agent")


class _Reply(msgspec.Struct):
    """A model's message, whose pieces stand on lines of their own."""

    id: str
    model: str
    at: int
    finish: str = "stop"
    pieces: list[str] = []
    tools: list[tuple[str, Any, str]] = []
    usage: Usage = Usage()


class _Agent(msgspec.Struct):
    """The session, or one of its side chains."""

    teller: Teller
    goal: str
    reply: _Reply | None = None


def session_facts(file: BinaryIO, name: str) -> Iterator[Fact]:
    """The events of a session. Raises UsageError for a file that is none, is cut off or has damaged lines."""
    session = _Session(name)
    number = 0
    while data := file.readline(_LONGEST_LINE + 1):
        number += 1
        where = f"line {number} of {name}"
        if len(data) > _LONGEST_LINE:
            raise UsageError(f"expected lines of at most {_LONGEST_LINE >> 20} MiB, found {where} longer")
        if data.strip():
            yield from session.add(as_dict(parse_json(data, where)))
    yield from session.finish()


class _Session:
    def __init__(self, name: str) -> None:
        self._name = name
        self._at = 0
        self._main: _Agent | None = None
        self._main_chain = ""
        self._agents: dict[str, _Agent] = {}
        self._chain_of: dict[str, str] = {}
        self._asked: dict[str, str] = {}
        self._charged: set[str] = set()
        self._compaction = ""
        self._title = ""
        self._passed: Counter[str] = Counter()
        self._hooks = 0

    def add(self, line: dict[str, Any]) -> Iterator[Fact]:
        """One line."""
        self._at = when_ms(line.get("timestamp"), self._at)
        kind, message = as_text(line.get("type")), as_dict(line.get("message"))
        content = message.get("content")
        if kind in ("user", "assistant") and content:
            agent = self._agent_of(line)
            if agent is None:
                goal = _plain(content) if kind == "user" else ""
                agent, facts = self._begin(line, message, goal)
                yield from facts
            if kind == "user":
                yield from self._user(agent, line, content)
            else:
                yield from self._assistant(agent, message, content)
            return
        if kind == "system" and line.get("subtype") == "compact_boundary":
            self._compaction = as_text(as_dict(line.get("compactMetadata")).get("trigger")) or "unknown"
            self._chain_of[as_text(line.get("uuid"))] = self._main_chain
            return
        if kind == "summary":
            self._title = as_text(line.get("summary"))
            return
        if uuid := as_text(line.get("uuid")):  # its descendants belong where it does
            self._chain_of[uuid] = self._chain_of.get(as_text(line.get("parentUuid")), self._main_chain)
        self._hooks += not kind and "event" in line
        self._passed[kind or "(no type)"] += 1

    # --- who speaks -------------------------------------------------------------------------------------------

    def _agent_of(self, line: dict[str, Any]) -> _Agent | None:
        """The agent that a line belongs to; None if it is a new one's first."""
        uuid, parent = as_text(line.get("uuid")), as_text(line.get("parentUuid"))
        if not line.get("isSidechain"):
            chain = self._main_chain
        else:
            chain = as_text(line.get("agentId")) or self._chain_of.get(parent, "") or uuid or "side"
        if uuid:
            self._chain_of[uuid] = chain
        if self._main is None:
            self._main_chain = chain
            return None
        return self._main if chain == self._main_chain else self._agents.get(chain)

    def _begin(self, line: dict[str, Any], message: dict[str, Any], goal: str) -> tuple[_Agent, list[Fact]]:
        model, version = as_text(message.get("model")), as_text(line.get("version"))
        if self._main is None:
            self._main = _Agent(Teller("1", model, self._at), goal)
            first = began("claude-code", model, "claude-code", self._at, version)
            return self._main, [first, Fact(spawned("1", "claude-code", goal), "1", 0, self._at)]
        chain = self._chain_of.get(as_text(line.get("uuid")), "") or as_text(line.get("agentId")) or "side"
        facts = list(self._flush(self._main))  # the call that asked for it comes first
        path, fact = self._main.teller.spawn("side chain", goal, self._at)
        agent = self._agents[chain] = _Agent(Teller(path, model, self._at), goal)
        return agent, [*facts, fact]

    # --- what is said -----------------------------------------------------------------------------------------

    def _user(self, agent: _Agent, line: dict[str, Any], content: Any) -> Iterator[Fact]:
        yield from self._flush(agent)
        teller = agent.teller
        if line.get("isCompactSummary"):
            yield from teller.compact(_plain(content), f"compacted by the program ({self._compaction})", self._at)
            return
        for block in content if isinstance(content, list) else [content]:
            if as_dict(block).get("type") == "tool_result":
                key, text = as_text(block.get("tool_use_id")), _plain(block.get("content"))
                failure = Failure("tool", text) if block.get("is_error") else None
                yield from self._end_side_chain(agent, key)
                yield from teller.tool_answered(key, text, self._at, failure)
                teller.hear("tool", text)
            elif text := _plain(block):
                teller.hear("user", text)
        teller.at = self._at  # the next call begins when it was asked

    def _assistant(self, agent: _Agent, message: dict[str, Any], content: Any) -> Iterator[Fact]:
        id = as_text(message.get("id"))
        if agent.reply is not None and (agent.reply.id != id or not id):
            yield from self._flush(agent)
        if agent.reply is None:
            agent.reply = _Reply(id, as_text(message.get("model")), self._at)
        reply = agent.reply
        reply.at = self._at
        reply.finish = _FINISH.get(as_text(message.get("stop_reason")), reply.finish)
        if id not in self._charged or not id:
            reply.usage = _usage(as_dict(message.get("usage")))
        for block in content if isinstance(content, list) else [content]:
            if as_dict(block).get("type") == "tool_use":
                key, tool = as_text(block.get("id")), as_text(block.get("name"))
                reply.tools.append((tool, block.get("input"), key))
                if tool in _AGENT_TOOLS:
                    self._asked[key] = as_text(as_dict(block.get("input")).get("prompt"))
            if text := _plain(block):
                reply.pieces.append(text)

    def _flush(self, agent: _Agent) -> Iterator[Fact]:
        """The pieces of a reply are complete: it is a call, and its tools are called."""
        reply = agent.reply
        if reply is None:
            return
        agent.reply = None
        self._charged.add(reply.id)
        yield from agent.teller.call(
            "\n".join(reply.pieces), reply.usage, reply.at, model=reply.model, finish=reply.finish
        )
        for tool, arguments, key in reply.tools:
            yield from agent.teller.use_tool(tool, arguments, key, reply.at)

    # --- ends -------------------------------------------------------------------------------------------------

    def _end_side_chain(self, agent: _Agent, key: str) -> Iterator[Fact]:
        """The tool that ran a side chain answered: the side chain with its prompt is over."""
        prompt = self._asked.pop(key, "")
        if agent is self._main and prompt:
            for chain, side in self._agents.items():
                if side.goal.strip() == prompt.strip():
                    del self._agents[chain]
                    yield from self._join(side)
                    return

    def _join(self, side: _Agent) -> Iterator[Fact]:
        assert self._main is not None
        yield from self._flush(side)
        yield from side.teller.end(side.teller.last_reply, self._at)
        yield self._main.teller.join(side.teller.path, self._at)

    def finish(self) -> Iterator[Fact]:
        """The end of the file."""
        if self._main is None:
            if self._hooks:
                raise UsageError(
                    f"expected a Claude Code session in {self._name}, found a log of its hooks, which holds no replies; "
                    "import the session's own file"
                )
            raise UsageError(f"expected a Claude Code session in {self._name}, found no message in it")
        yield from self._flush(self._main)
        for side in self._agents.values():
            yield from self._join(side)
        result: dict[str, Any] = {"answer": self._main.teller.last_reply}
        if self._title:
            result["title"] = self._title
        yield from self._main.teller.end(result, self._at)
        yield from passed_over(self._passed, self._at)


_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def _usage(found: dict[str, Any]) -> Usage:
    cached = as_int(found.get("cache_read_input_tokens"))
    prompt = as_int(found.get("input_tokens")) + as_int(found.get("cache_creation_input_tokens")) + cached
    return Usage(prompt, cached, as_int(found.get("output_tokens")))


def _plain(content: Any) -> str:
    """The text of a message's content: of blocks that are no text, what they are."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(text for block in content if (text := _plain(block)))
    block = as_dict(content)
    kind = as_text(block.get("type"))
    if kind == "text":
        return as_text(block.get("text"))
    if kind == "thinking":
        return f"<thinking>{thought}</thinking>" if (thought := as_text(block.get("thinking"))) else ""
    if kind == "tool_use":
        return f"[tool call {as_text(block.get('name'))} {as_text(block.get('input'))}]"
    return f"[{kind}]" if kind else as_text(content)
