"""Inspect: an evaluation's log (`.eval` or JSON) as a run.

Owns what its samples, spans and events mean: the evaluation is the root, each sample a child with a key of its id
and epoch, each agent inside of a sample a child below. An `.eval` file is read sample by sample. What says nothing
about calls is counted by its kind, in the last event.
"""

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treering.events.catalogue import Failure, Usage
from treering.events.errors import UsageError
from treering.replays.telling import (
    Fact,
    Heard,
    Teller,
    as_dict,
    as_int,
    as_list,
    as_text,
    began,
    parse_json,
    passed_over,
    spawned,
    when_ms,
)

__all__ = ["eval_facts", "json_facts", "read_whole"]

_LARGEST = 128 * 2**20
_MOST_MEMBERS = 200_000
_BOMB_RATIO, _BOMB_BYTES = 200, 16 * 2**20
_NUMBERS = re.compile(r"(\d+)")


def read_whole(path: Path) -> Any:
    """The one JSON value in a file. Raises UsageError if it is too large or none."""
    size = path.stat().st_size
    if size > 4 * _LARGEST:
        raise UsageError(
            f"expected at most {4 * _LARGEST >> 20} MiB of JSON, found {size >> 20} in {path}; use .eval"
        )
    return parse_json(path.read_bytes(), str(path))


def json_facts(log: dict[str, Any], name: str) -> Iterator[Fact]:
    """The events of a log that is one JSON object."""
    yield from _facts(log, map(as_dict, as_list(log.get("samples"))), name)


def eval_facts(path: Path) -> Iterator[Fact]:
    """The events of an `.eval` file. Raises UsageError for a file that is none, is cut off or unpacks to too much."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if len(members) > _MOST_MEMBERS:
                raise UsageError(f"expected at most {_MOST_MEMBERS} files in {path}, found {len(members)}")
            header = members.get("header.json") or members.get("_journal/start.json")
            if header is None:
                raise UsageError(f"expected an Inspect log in {path}, found a zip without header.json")
            names = sorted((name for name in members if name.startswith("samples/")), key=_naturally)
            samples = (as_dict(_member(archive, members[name], path)) for name in names if name.endswith(".json"))
            yield from _facts(as_dict(_member(archive, header, path)), samples, str(path))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"expected an Inspect log in {path}, found a zip that cannot be read ({error})") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Any:
    where = f"{member.filename} of {path}"
    bomb = member.file_size > _BOMB_BYTES and member.file_size > _BOMB_RATIO * max(1, member.compress_size)
    if member.file_size > _LARGEST or bomb:
        raise UsageError(
            f"expected at most {_LARGEST >> 20} MiB, packed at most {_BOMB_RATIO} times, found {where} with "
            f"{member.file_size >> 20} MiB from {member.compress_size} bytes"
        )
    with archive.open(member) as file:
        return parse_json(file.read(_LARGEST + 1), where)


def _naturally(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and len(part) < 19 else (0, part) for part in _NUMBERS.split(name)]


def _facts(log: dict[str, Any], samples: Iterator[dict[str, Any]], name: str) -> Iterator[Fact]:
    about = as_dict(log.get("eval"))
    if not about:
        raise UsageError(f"expected an Inspect log in {name}, found no object `eval` in it")
    at = when_ms(about.get("created"), 0)
    model = as_text(about.get("model"))
    title = as_text(about.get("task")) or "evaluation"
    yield began("inspect", model, f"inspect:{title}", at, _version(about))
    yield Fact(spawned("1", f"inspect:{title}", title), "1", 0, at)
    root = Teller("1", model, at)
    passed: Counter[str] = Counter()
    for sample in samples:
        yield from _Sample(root, sample, model, at, passed).facts()
        at = when_ms(sample.get("completed_at"), at)
    status = as_text(log.get("status")) or "unknown"
    at = when_ms(as_dict(log.get("stats")).get("completed_at"), at)
    metrics = {
        f"{as_text(score.get('name'))}/{metric}": as_dict(value).get("value")
        for score in map(as_dict, as_list(as_dict(log.get("results")).get("scores")))
        for metric, value in as_dict(score.get("metrics")).items()
    }
    error = as_text(as_dict(log.get("error")).get("message"))
    failure = Failure("error", error or status) if status == "error" else None
    yield from root.end({"answer": status, "metrics": metrics}, at, failure)
    yield from passed_over(passed, at)


def _version(about: dict[str, Any]) -> str:
    version = as_text(as_dict(about.get("packages")).get("inspect_ai"))
    return f"inspect_ai {version}" if version else ""


class _Sample:
    """One sample: its events as those of a task and the tasks below it."""

    def __init__(self, root: Teller, sample: dict[str, Any], model: str, at: int, passed: Counter[str]) -> None:
        self._root = root
        self._sample = sample
        self._model = model
        self._attachments = as_dict(sample.get("attachments"))
        self._pool = [as_dict(message) for message in as_list(as_dict(sample.get("events_data")).get("messages"))]
        self._events = [as_dict(event) for event in as_list(sample.get("events"))]
        self._at = when_ms(self._events[0].get("timestamp") if self._events else sample.get("started_at"), at)
        self._spans = {as_text(e.get("id")): e for e in self._events if e.get("event") == "span_begin"}
        self._owners: dict[str, str] = {}
        self._tellers: dict[str, Teller] = {}
        self._passed = passed

    def facts(self) -> Iterator[Fact]:
        sample = self._sample
        key = f"{as_text(sample.get('id'))}/{as_text(sample.get('epoch'))}"
        goal = self._input(sample.get("input"))
        inputs = {"target": self._resolve(sample.get("target"))}
        path, fact = self._root.spawn("sample", goal, self._at, key, inputs)
        yield fact
        own = self._tellers[""] = Teller(path, self._model, self._at)
        keeps = self._keeps()
        for number, event in enumerate(self._events):
            self._at = when_ms(event.get("timestamp"), self._at)
            yield from self._event(event, keeps.get(number, False))
        for span in [span for span in reversed(self._tellers) if span]:
            yield from self._leave(span)
        yield from own.end(self._result(own), self._at, self._failure())
        yield self._root.join(path, self._at)

    def _event(self, event: dict[str, Any], keep: bool) -> Iterator[Fact]:
        kind, span = as_text(event.get("event")), as_text(event.get("span_id"))
        if kind == "span_begin":
            span = as_text(event.get("id"))
            if self._owner(span) == span and span:
                above = self._tellers[self._owner(as_text(event.get("parent_id")))]
                path, fact = above.spawn(as_text(event.get("name")) or "agent", "", self._at)
                self._tellers[span] = Teller(path, self._model, self._at)
                yield fact
        elif kind == "span_end":
            yield from self._leave(as_text(event.get("id")))
        elif kind == "model":
            yield from self._call(self._teller(span), event, keep)
        elif kind == "tool":
            yield from self._tool(self._teller(span), event)
        else:
            self._passed[kind or "(no kind)"] += 1

    def _leave(self, span: str) -> Iterator[Fact]:
        """An agent inside of the sample is done."""
        teller = self._tellers.pop(span, None) if span else None
        if teller is not None:
            above = self._teller(as_text(self._spans[span].get("parent_id")))
            yield from teller.end(teller.last_reply, self._at)
            yield above.join(teller.path, self._at)

    # --- whose event it is ------------------------------------------------------------------------------------

    def _owner(self, span: str) -> str:
        """The agent's span that this one lies in; "" for the sample itself, which is its outermost agent."""
        if span not in self._owners:
            trail = [span]
            while (up := as_text(as_dict(self._spans.get(trail[-1])).get("parent_id"))) and up not in trail:
                trail.append(up)
            agents = [one for one in trail if as_dict(self._spans.get(one)).get("type") == "agent"]
            self._owners[span] = agents[0] if len(agents) > 1 else ""
        return self._owners[span]

    def _teller(self, span: str) -> Teller:
        return self._tellers.get(self._owner(span)) or self._tellers[""]

    # --- calls --------------------------------------------------------------------------------------------------

    def _keeps(self) -> dict[int, bool]:
        """Which model calls leave their messages in the window: those of agents whose every prompt goes on from
        the last. An agent that rewrites its messages is told with whole prompts."""
        shown: dict[str, list[Heard]] = {}
        whole: set[str] = set()
        calls: list[tuple[int, str]] = []
        for number, event in enumerate(self._events):
            if event.get("event") == "model":
                owner = self._owner(as_text(event.get("span_id")))
                calls.append((number, owner))
                said = self._prompt(event)
                if owner in shown and said[: len(shown[owner])] != shown[owner]:
                    whole.add(owner)
                shown[owner] = said if _error(event) else [*said, Heard("assistant", self._reply(event)[0])]
                if _error(event):
                    whole.add(owner)
        return {number: owner not in whole for number, owner in calls}

    def _call(self, teller: Teller, event: dict[str, Any], keep: bool) -> Iterator[Fact]:
        said = self._prompt(event)
        for heard in said[len(teller.window()) :] if keep else said:
            teller.hear(heard.role, heard.text)
        reply, finish = self._reply(event)
        output, config = as_dict(event.get("output")), as_dict(event.get("config"))
        error = _error(event)
        teller.at = self._at
        temperature = config.get("temperature")
        yield from teller.call(
            reply,
            _usage(as_dict(output.get("usage"))),
            when_ms(event.get("completed"), self._at),
            model=as_text(event.get("model")),
            finish=finish,
            max_tokens=as_int(config.get("max_tokens")),
            temperature=float(temperature) if isinstance(temperature, int | float) else 0.0,
            keep=keep,
            failure=Failure("engine", error) if error else None,
            seconds=output.get("time"),
        )

    def _tool(self, teller: Teller, event: dict[str, Any]) -> Iterator[Fact]:
        key, name = as_text(event.get("id")), as_text(event.get("function"))
        yield from teller.use_tool(name, event.get("arguments"), key, self._at)
        error = as_dict(event.get("error"))
        failure = Failure(as_text(error.get("type")) or "tool", as_text(error.get("message"))) if error else None
        done = when_ms(event.get("completed"), self._at)
        yield from teller.tool_answered(key, self._content(event.get("result")), done, failure)

    def _prompt(self, event: dict[str, Any]) -> list[Heard]:
        messages = [as_dict(message) for message in as_list(event.get("input"))]
        for pair in as_list(event.get("input_refs")):
            low, high = (as_int(bound) for bound in (*as_list(pair), 0, 0)[:2])
            messages += self._pool[low:high]
        return [Heard(as_text(message.get("role")) or "user", self._message(message)) for message in messages]

    def _reply(self, event: dict[str, Any]) -> tuple[str, str]:
        choices = as_list(as_dict(event.get("output")).get("choices"))
        choice = as_dict(choices[0]) if choices else {}
        finish = as_text(choice.get("stop_reason")) or "stop"
        return self._message(as_dict(choice.get("message"))), {"max_tokens": "length"}.get(finish, finish)

    # --- texts --------------------------------------------------------------------------------------------------

    def _message(self, message: dict[str, Any]) -> str:
        text = self._content(message.get("content"))
        for call in map(as_dict, as_list(message.get("tool_calls"))):
            text += f"\n[tool call {as_text(call.get('function'))} {as_text(call.get('arguments'))}]"
        return text.strip("\n")

    def _content(self, content: Any) -> str:
        if isinstance(content, list):
            return "\n".join(text for part in content if (text := self._content(part)))
        part = as_dict(content)
        kind = as_text(part.get("type"))
        if kind == "text":
            return as_text(self._resolve(part.get("text")))
        if kind == "reasoning":
            return f"<thinking>{as_text(self._resolve(part.get('reasoning')))}</thinking>"
        return f"[{kind}]" if kind else as_text(self._resolve(content))

    def _input(self, given: Any) -> str:
        """A sample's input: a text, or messages of which the last is the question."""
        messages = as_list(given)
        return self._message(as_dict(messages[-1])) if messages else as_text(self._resolve(given))

    def _resolve(self, value: Any) -> Any:
        """A text that stands among the attachments, in its place."""
        if isinstance(value, str) and value.startswith("attachment://"):
            return self._attachments.get(value.removeprefix("attachment://"), value)
        return value

    # --- ends ---------------------------------------------------------------------------------------------------

    def _result(self, own: Teller) -> dict[str, Any]:
        completion = self._resolve(as_dict(self._sample.get("output")).get("completion"))
        scores = {name: as_dict(score).get("value") for name, score in as_dict(self._sample.get("scores")).items()}
        return {"answer": as_text(completion) or own.last_reply, "scores": scores}

    def _failure(self) -> Failure | None:
        error = self._sample.get("error")
        return None if not error else Failure("error", as_text(as_dict(error).get("message")) or as_text(error))


def _error(event: dict[str, Any]) -> str:
    found = event.get("error") or as_dict(event.get("output")).get("error")
    return as_text(found) if found else ""


def _usage(found: dict[str, Any]) -> Usage:
    cached = as_int(found.get("input_tokens_cache_read"))
    generated, total = as_int(found.get("output_tokens")), as_int(found.get("total_tokens"))
    prompt = total - generated if total > generated else as_int(found.get("input_tokens")) + cached
    return Usage(prompt, cached, generated)
