"""Several methods as one: `ada_snapkv+kivi`.

`a+b` is b on top of a. The parts in which b differs from the method that it is built on replace those of a; its other
parts only fill gaps. A method with a store or a decode policy brings just that, and comes last in whatever order. Of
two stores, one may give fields to the other (`gives` and `takes`), which is then the store of both. A combination that
would be the same without one of its methods is refused.

A method without parts keeps every token. `fullkv+b` is what b does with stored tokens, and no token of the prompt
leaves for its score.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from kvbench.methods.composition import STORED, Composition, filled, reached, references, renamed
from kvbench.methods.dials import EVICTING, PARTS


def combination(name: str, read: Callable[[str], Composition]) -> Composition:
    """Return `a+b`, the same in every order of the names that gives the same parts.

    Raises:
        ValueError: a method is named twice or adds nothing, or two of them set the same part or dial.
    """
    names = name.split("+")
    if not all(names):
        raise ValueError(f"method={name}: a name is missing next to a +")
    twice = next((factor for factor in names if names.count(factor) > 1), None)
    if twice is not None:
        raise ValueError(f"method={name}: {twice} is named twice")
    factors = [read(factor) for factor in names]
    if not all(factor.parts for factor in factors):
        return _keeping_all(factors, name)
    factors = _in_order(_with_fields_given(factors, name))
    for factor in factors:
        if "look" in factor.parts:
            other = next(f.name for f in factors if f is not factor)
            raise ValueError(
                f"method={name}: {factor.name} reads part of a cache that keeps every token as it is, and {other} does "
                f"not keep it so; write method={factor.name} or method={other}"
            )
        if "feed" in factor.parts:  # its chunks are not scored, and what its policy drops is all that leaves
            other = next(f.name for f in factors if f is not factor)
            raise ValueError(
                f"method={name}: {factor.name} feeds its prompt through the decode path, where nothing of {other} "
                f"acts; write method={factor.name} or method={other}"
            )
    for part in PARTS:
        if part in EVICTING:  # every evicting method has them; of any other part there is one
            continue
        both = [factor for factor in factors if part in factor.own]
        if len(both) > 1 and not _is_same(part, *both[:2]):
            raise ValueError(f"method={name}: {' and '.join(f.name for f in both)} set {part}, and a method has one")
    for factor in factors:
        _check_factor(factor, factors, name)
    whole = factors[0]
    for factor in factors[1:]:
        whole = _combined(whole, factor, name)
    return whole


def _keeping_all(factors: Sequence[Composition], name: str) -> Composition:
    """Return a combination in which one method has no parts: of the others, what acts on stored tokens.

    Raises:
        ValueError: another method acts on the prompt, or none of them would change.
    """
    full = next(factor for factor in factors if not factor.parts)
    rest = [factor for factor in factors if factor is not full]
    advice = "+".join(factor.name for factor in rest)
    stored = {factor.name: _stored_part(factor) for factor in rest}
    for factor in rest:
        if not factor.own <= STORED or "feed" in factor.own:
            reason = f"{full.name} has no parts, and {factor.name} acts on the prompt"
            raise ValueError(f"method={name}: {reason}; write method={advice}")
    if all(stored[factor.name].parts == factor.parts for factor in rest):
        raise ValueError(f"method={name}: {full.name} has no parts; write method={advice}")
    whole = stored[advice] if len(rest) == 1 else combination(advice, stored.__getitem__)
    return replace(
        whole,
        name=f"{full.name}+{whole.name}",
        summary="\n".join(filter(None, (full.summary, whole.summary))),
        about={**full.about, **whole.about},
    )


def _stored_part(factor: Composition) -> Composition:
    """Return a method with those of its own parts alone that act on stored tokens."""
    parts = {part: node for part, node in factor.parts.items() if part in factor.own & STORED}
    dials = {key: value for key, value in factor.dials.items() if key in reached(factor.dials, parts)}
    given = {key: value for key, value in (factor.test.get("dials") or {}).items() if key in dials}
    return replace(factor, parts=parts, dials=dials, test={**factor.test, "dials": given})


def _with_fields_given(factors: Sequence[Composition], name: str) -> list[Composition]:
    """Return the factors, of which one that gives fields to the store of another has no store of its own any more.

    If it has no other parts, the two are one factor.

    Raises:
        ValueError: they have a dial of the same name.
    """
    for giver, taker in permutations(factors, 2):
        if "store" not in giver.own & taker.own or not giver.gives or not giver.gives.keys() <= {*taker.takes}:
            continue
        read = reached(giver.dials, {"store": giver.gives})
        both = sorted(read & taker.dials.keys())
        if both:
            raise ValueError(f"method={name}: {giver.name} and {taker.name} both have a dial {both[0]}; rename one")
        dials = {**{key: value for key, value in giver.dials.items() if key in read}, **taker.dials}
        joined = replace(
            taker,
            parts={**taker.parts, "store": {**taker.parts["store"], **giver.gives}},
            dials=dials,
            own_dials=taker.own_dials | read,
            notes={**taker.notes, **{dial: note for dial, note in giver.notes.items() if dial in read}},
            test=_both_tests(taker.test, giver.test, {}, dials),
            takes=(),
        )
        parts = {part: node for part, node in giver.parts.items() if part != "store"}
        if parts:
            rest = replace(giver, parts=parts, own=giver.own - {"store"}, added=giver.added - {"store"})
            return [rest if factor is giver else joined if factor is taker else factor for factor in factors]
        whole = replace(
            joined,
            name=f"{giver.name}+{taker.name}",
            summary="\n".join(filter(None, (giver.summary, taker.summary))),
            about={**giver.about, **taker.about},
        )
        return [whole if factor is taker else factor for factor in factors if factor is not giver]
    return list(factors)


def _in_order(factors: Sequence[Composition]) -> list[Composition]:
    """Return the factors in the order of their parts, as far as the result does not depend on it; `STORED` last."""
    order = sorted(factors, key=lambda factor: factor.own <= STORED)
    for _ in order:
        for i in range(len(order) - 1):
            swapped = [*order[:i], order[i + 1], order[i], *order[i + 2 :]]
            if _rank(order[i + 1]) < _rank(order[i]) and _outcome(swapped) == _outcome(order):
                order = swapped
    return order


def _rank(factor: Composition) -> tuple[int, int, str]:
    first = [min((PARTS.index(part) for part in parts), default=len(PARTS)) for parts in (factor.parts, factor.own)]
    return first[0], first[1], factor.name


def _outcome(factors: Sequence[Composition]) -> dict[str, Any]:
    """Return the parts of a combination with the defaults of their dials filled in."""
    outcome: dict[str, Any] = {}
    for factor in factors:
        for part, node in factor.parts.items():
            if part in factor.own or part not in outcome:
                outcome[part] = filled(node, factor.dials)
    return outcome


def _check_factor(factor: Composition, factors: Sequence[Composition], name: str) -> None:
    """Raise ValueError, with the reason, if a combination leaves nothing of one of its methods."""
    reason = _lost(factor, factors)
    if reason is None:
        return
    advice = "+".join(other.name for other in factors if other is not factor)
    turned = factors[::-1]
    if len(factors) == 2 and _may_be(turned):
        advice += f" or method={turned[0].name}+{turned[1].name}"
    raise ValueError(f"method={name}: {reason}; write method={advice}")


def _may_be(factors: Sequence[Composition]) -> bool:
    """Return True if two methods in this order leave something of both, and their parts go together.

    A probe needs a part that reads it. A selection that comes without layer budgets decides by itself how many tokens
    stay. Whether the classes of the parts go together as well is not known here.
    """
    if _in_order(factors) != factors or any(_lost(factor, factors) for factor in factors):
        return False
    try:
        below, above = factors
        parts = _combined(below, above, f"{below.name}+{above.name}").parts
    except ValueError:
        return False
    if "probe" in parts and not any("probe" in references(node, depth=1) for node in parts.values()):
        return False
    chooser = next((factor for factor in reversed(factors) if "select" in factor.own), factors[0])
    return "layers" not in parts or "layers" in chooser.parts


def _lost(factor: Composition, factors: Sequence[Composition]) -> str | None:
    """Return why a combination would do without one of its methods, or None.

    A method without `use` may lose some of its parts to another; what a method adds to its base may not get lost.
    """
    outcome, alone = _outcome(factors), _outcome([factor])
    rest = [other for other in factors if other is not factor]
    replaced = [part for part in factor.own if outcome[part] != alone[part]]
    if replaced and (set(replaced) & factor.added or len(replaced) == len(factor.own) or _outcome(rest) == outcome):
        winners = [other.name for other in rest if other.own & set(replaced)]
        return f"{' and '.join(winners)} would replace {_listed(replaced)} of {factor.name}"
    return f"{' and '.join(o.name for o in rest)} has all parts of {factor.name}" if _outcome(rest) == outcome else None


def _listed(parts: Collection[str]) -> str:
    return ", ".join(part for part in PARTS if part in parts)


def _combined(a: Composition, b: Composition, name: str) -> Composition:
    """Return a with the parts that the file of b writes. What b inherits fills gaps alone.

    A dial that the file of b writes and that a has as well gets the name `<b>_<dial>`. A dial that b inherits is the
    dial of a, if a has one of that name.
    """
    from_b = {
        part: node
        for part, node in b.parts.items()
        if part not in a.parts or (part in b.own and not _is_same(part, a, b))
    }
    from_a = {part: node for part, node in a.parts.items() if part not in from_b}
    dials = {key: a.dials[key] for key in a.dials if key in reached(a.dials, from_a)}
    needed = [key for key in b.dials if key in reached(b.dials, from_b)]
    names = {key: f"{b.name}_{key}" for key in needed if key in dials and key in b.own_dials}
    for key in needed:
        if key in names and (names[key] in a.dials or names[key] in b.dials):
            raise ValueError(f"method={name}: {key} of {b.name} would be called {names[key]}, which is a dial already")
        if key in dials and key not in names and not _same_kind(dials[key], b.dials[key]):
            raise ValueError(
                f"method={name}: the dial {key} is {dials[key]} in {a.name} and {b.dials[key]} in {b.name}, "
                "which is not the same setting; give one of them another name"
            )
    added = {names.get(key, key): renamed(b.dials[key], names, 1) for key in needed if key in names or key not in dials}
    return replace(
        a,
        name=f"{a.name}+{b.name}",
        summary="\n".join(filter(None, (a.summary, b.summary))),
        about={**a.about, **b.about},
        dials={**dials, **added},
        parts={**from_a, **{part: renamed(node, names, 1) for part, node in from_b.items()}},
        origin={part: (b if part in from_b else a).origin[part] for part in (*from_a, *from_b)},
        own=a.own | b.own,
        own_dials=a.own_dials | b.own_dials,
        added=a.added | b.own,
        added_dials=a.added_dials | b.own_dials,
        notes={**b.notes, **a.notes, **{new: b.notes[old] for old, new in names.items() if old in b.notes}},
        test=_both_tests(a.test, b.test, names, {*dials, *added}),
    )


def _is_same(part: str, a: Composition, b: Composition) -> bool:
    """Return True if two methods have the same part with the same defaults."""
    return part in a.parts and bool(filled(a.parts[part], a.dials) == filled(b.parts[part], b.dials))


def _same_kind(a: Any, b: Any) -> bool:
    """Return True if two defaults may be the default of one dial; of an interpolation, that is not known here."""
    interpolated = any(isinstance(value, str) and "${" in value for value in (a, b))
    return interpolated or a is None or b is None or type(a) is type(b)


def _both_tests(
    a: Mapping[str, Any], b: Mapping[str, Any], names: Mapping[str, str], known: Collection[str]
) -> dict[str, Any]:
    dials = {**{names.get(k, k): v for k, v in (b.get("dials") or {}).items()}, **(a.get("dials") or {})}
    return {**a, **b, "dials": {key: value for key, value in dials.items() if key in known}}
