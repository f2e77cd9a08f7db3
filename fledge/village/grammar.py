"""A grammar with memory: weighted templates whose slots draw, remember, repeat, look up facts and add up.

One compiled form serves writing (`expand`) and reading (`parse`). A template is plain text with slots:

    {x:person}      draw a value from the table `person`, call it x, write it
    {x:person.an}   the same, written in its form `an`
    {h:a|b|c}       draw one of the values called a, b, c, other than the one h names now
    {x} {x.his}     write what x names, or a form of it
    {v:verb.@x}     the form of the drawn verb that agrees with x
    {x.trade}       the fact `trade` of x; {x.trade.an} a form of it; {y:x.friend} calls the value y
    {y=x}           call x's value y as well and write nothing; {y=x.trade} with a fact, for one who knows it
    {n*m} {200-n}   a number worked out from numbers drawn earlier
    {scene!}        choose one of the templates of the rule `scene`

A draw from a table never gives a value that some name stands for at that moment. The most common template of
a rule comes first: the k-th has weight 60 // (k + 1). A `*` after the rule's name makes all equally likely;
a template may also state its weight before a bar (`3 | text`), or one for each column (`3/1 | text`), so that
the same rules under other weights make another grammar.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from math import inf, log, prod
from typing import Any, NamedTuple


@dataclass(eq=False, slots=True)
class Value:
    """Something that can be drawn and named: its written forms ("" is the plain one), number and facts."""

    forms: dict[str, str]
    number: int = 0
    facts: dict[str, "Value"] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.forms[""]


class Table:
    """Values with positive integer weights, all 1 by default."""

    def __init__(self, values: list[Value], weights: list[int] | None = None) -> None:
        weights = [1] * len(values) if weights is None else weights
        self.values = values
        self.weight = dict(zip(values, weights, strict=True))
        self.total = sum(weights)
        # One entry per unit of weight: the fastest exact draw there is.
        self.tickets = [value for value, weight in self.weight.items() for _ in range(weight)]
        self._by_form: dict[str, tuple[list[int], dict[str, list[Value]]]] = {}

    def total_without(self, excluded: Collection[Value]) -> int:
        """Weight of all values but the excluded ones."""
        return self.total - sum(self.weight.get(value, 0) for value in set(excluded))

    def matches(self, form: str, text: str, start: int) -> Iterator[tuple[Value, str]]:
        """Yield the values whose form stands in the text at that place."""
        if form not in self._by_form:
            by_text: dict[str, list[Value]] = {}
            for value in self.values:
                by_text.setdefault(value.forms[form], []).append(value)
            self._by_form[form] = sorted({len(written) for written in by_text}), by_text
        lengths, by_text = self._by_form[form]
        for length in lengths:
            written = text[start : start + length]
            for value in by_text.get(written, ()):
                yield value, written


@dataclass(eq=False, slots=True)
class Rule:
    """Alternatives (templates as lists of ops) with weights; `tickets` holds one entry per unit of weight."""

    alternatives: list[list["Op"]] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    tickets: list[list["Op"]] = field(default_factory=list)


TEXT, SHOW, DRAW, FACT, AMONG, NAME, SUM, RULE = range(8)


class Op(NamedTuple):
    """One step of a compiled template; which fields count depends on the kind."""

    kind: int
    text: str = ""  # TEXT: what to write; else empty
    name: str = ""  # the name that is shown or bound
    form: str = ""
    agrees_with: str = ""  # the name whose number says which form is written, instead of `form`
    owner: str = ""  # FACT: whose fact; NAME: whose value
    attribute: str = ""
    table: Table = Table([])  # DRAW: drawn from; FACT: the prior from which worlds take the fact
    names: tuple[str, ...] = ()  # AMONG
    terms: tuple[tuple[int, tuple[str, ...]], ...] = ()  # SUM: (sign, factors)
    rule: Rule = Rule()


class Step(NamedTuple):
    """One decision of a derivation: a choice of probability weight / total, or a fact told (its prior)."""

    weight: int
    total: int
    start: int
    end: int
    fact: tuple[Value, str, Value] | None = None  # (person, attribute, value)
    is_news: bool = False  # the fact has not been told before in this text

    @property
    def nats(self) -> float:
        """Log-probability of the choice."""
        return log(self.weight / self.total)

    @property
    def known_nats(self) -> float:
        """The same for one who knows the world: true facts cost nothing, false ones are never told."""
        if self.fact is None:
            return self.nats
        person, attribute, value = self.fact
        return 0.0 if person.facts[attribute] is value else -inf


Names = dict[str, Value]
Told = dict[tuple[Value, str], Value]
# choose(tickets, excluded) gives one of the tickets, each equally likely, but none of the excluded values.
Choose = Callable[[list[Any], Collection[Value]], Any]

_WEIGHTED = re.compile(r"\s*((?P<weights>[\d/]+) \| )?(?P<template>.*?)\s*")
_SLOT = re.compile(r"\{([^}]*)\}")


class Grammar:
    """Rules over tables; see the module's text for the template language.

    Args:
        source: rule names at the line start, their templates indented below.
        tables: what slots may draw from.
        priors: for each fact's name, the table from which a world takes it (its owner excluded).
        column: which of the stated weights count.
    """

    def __init__(self, source: str, tables: dict[str, Table], priors: dict[str, Table], column: int = 0) -> None:
        self.tables, self.priors = {**priors, **tables}, priors
        lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
        self.rules = {line.rstrip("*"): Rule() for line in lines if not line.startswith(" ")}
        rule, is_even = Rule(), False
        for line in lines:
            if not line.startswith(" "):
                rule, is_even = self.rules[line.rstrip("*")], line.endswith("*")
                continue
            found = _WEIGHTED.fullmatch(line)
            assert found
            weight = 1 if is_even else max(1, 60 // (len(rule.alternatives) + 2))
            if found["weights"]:
                weight = int(found["weights"].split("/")[column])
            ops = self._compile(found["template"].replace("\\n", "\n").replace('""', ""))
            rule.alternatives.append(ops)
            rule.weights.append(weight)
            rule.tickets.extend([ops] * weight)

    def _compile(self, template: str) -> list[Op]:
        pieces = enumerate(_SLOT.split(template))
        ops = [self._compile_slot(piece) if k % 2 else Op(TEXT, text=piece) for k, piece in pieces if piece]
        return ops or [Op(TEXT)]

    def _compile_slot(self, slot: str) -> Op:
        if slot.endswith("!"):
            return Op(RULE, rule=self.rules[slot[:-1]])
        if "=" in slot:
            name, _, source = slot.partition("=")
            owner, _, attribute = source.partition(".")
            return Op(NAME, name=name, owner=owner, attribute=attribute)
        if re.search(r"[-+*]", slot):
            terms = re.findall(r"(-?)\+?([\w*]+)", slot)
            return Op(SUM, terms=tuple((-1 if sign else 1, tuple(term.split("*"))) for sign, term in terms))
        name, _, source = slot.rpartition(":")
        head, form, fact_form = (*source.split("."), "", "")[:3]
        if form in self.priors:
            return Op(FACT, name=name, owner=head, attribute=form, form=fact_form, table=self.priors[form])
        agrees_with, form = (form[1:], "") if form.startswith("@") else ("", form)
        op = Op(SHOW, name=name or head, form=form, agrees_with=agrees_with)
        if not name:
            return op
        if "|" in head:
            return op._replace(kind=AMONG, names=tuple(head.split("|")))
        return op._replace(kind=DRAW, table=self.tables[head])

    def write(self, rule: str, draw: Callable[[], int], names: Names | None = None) -> str:
        """One text from a rule.

        Args:
            draw: gives random non-negative integers.
            names: what names stand for at the start; changed in place to what they stand for at the end.
        """

        def choose(tickets: list[Any], excluded: Collection[Value]) -> Any:
            chosen = tickets[draw() % len(tickets)]
            while chosen in excluded:
                chosen = tickets[draw() % len(tickets)]
            return chosen

        return self.expand(rule, choose, names)

    def expand(self, rule: str, choose: Choose, names: Names | None = None) -> str:
        """The text that a rule gives when `choose` takes every decision, from left to right."""
        out: list[str] = []
        _expand(self.rules[rule], choose, {} if names is None else names, out)
        return "".join(out)

    def parse(self, rule: str, text: str, names: Names | None = None) -> list[tuple[Step, ...]]:
        """All derivations of the text, facts taken as unknown; a proper text has exactly one."""
        return list(_parse(text, 0, [Op(RULE, rule=self.rules[rule])], names or {}, {}, ()))


def _expand(rule: Rule, choose: Choose, names: Names, out: list[str]) -> None:
    for op in choose(rule.tickets, ()):
        kind = op.kind
        if kind == TEXT:
            out.append(op.text)
        elif kind == RULE:
            _expand(op.rule, choose, names, out)
        elif kind == NAME:
            names[op.name] = _named(op, names)
        elif kind == SUM:
            out.append(_add_up(op, names))
        elif kind == FACT:
            value = _named(op, names)
            if op.name:
                names[op.name] = value
            out.append(value.forms[op.form])
        else:
            if kind == DRAW:
                names[op.name] = choose(op.table.tickets, names.values())
            elif kind == AMONG:
                names[op.name] = choose(_among(op, names), ())
            out.append(names[op.name].forms[_form(op, names)])


def _named(op: Op, names: Names) -> Value:
    return names[op.owner].facts[op.attribute] if op.attribute else names[op.owner]


def _form(op: Op, names: Names) -> str:
    return names[op.agrees_with].forms["number"] if op.agrees_with else op.form


def _among(op: Op, names: Names) -> list[Value]:
    """The different values that an AMONG op may draw."""
    now = names.get(op.name)
    return [value for value in dict.fromkeys(names[name] for name in op.names) if value is not now]


def _add_up(op: Op, names: Names) -> str:
    total = 0
    for sign, factors in op.terms:
        total += sign * prod(int(factor) if factor.isdigit() else names[factor].number for factor in factors)
    return str(total)


def _parse(
    text: str, at: int, ops: list[Op], names: Names, told: Told, steps: tuple[Step, ...]
) -> Iterator[tuple[Step, ...]]:
    """Depth first over all ways to read `ops` from `at` to the end; branches never change what they share."""
    for k, op in enumerate(ops, start=1):
        kind = op.kind
        if kind in (TEXT, SHOW, SUM):
            if kind == SHOW:
                written = names[op.name].forms[_form(op, names)]
            else:
                written = op.text if kind == TEXT else _add_up(op, names)
            if not text.startswith(written, at):
                return
            at += len(written)
        elif kind == NAME:
            names = {**names, op.name: _named(op, names)}
        elif kind == RULE:
            rest, num_tickets = ops[k:], len(op.rule.tickets)
            for inner, weight in zip(op.rule.alternatives, op.rule.weights, strict=True):
                if weight and text.startswith(inner[0].text, at):
                    step = Step(weight, num_tickets, at, at)
                    yield from _parse(text, at, [*inner, *rest], names, told, (*steps, step))
            return
        else:
            for step, value in _readings(op, text, at, names, told):
                new_names = {**names, op.name: value} if op.name else names
                new_told = {**told, step.fact[:2]: value} if step.fact and step.is_news else told
                yield from _parse(text, step.end, ops[k:], new_names, new_told, (*steps, step))
            return
    if at == len(text):
        yield steps


def _readings(op: Op, text: str, at: int, names: Names, told: Told) -> Iterator[tuple[Step, Value]]:
    """What a drawing op or a fact may have written at that place."""
    table = Table(_among(op, names)) if op.kind == AMONG else op.table
    excluded = {names[op.owner]} if op.kind == FACT else set(names.values()) if op.kind == DRAW else set()
    for value, written in table.matches(_form(op, names), text, at):
        if value in excluded:
            continue
        end = at + len(written)
        fact = (names[op.owner], op.attribute, value) if op.kind == FACT else None
        known = told.get(fact[:2]) if fact else None
        if known is None:
            total = table.total_without(excluded)
            yield Step(table.weight[value], total, at, end, fact, is_news=fact is not None), value
        elif known is value:
            yield Step(1, 1, at, end, fact), value
