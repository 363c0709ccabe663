"""`flipkit plugins`: lists components and broken plugins, or checks them.

flipkit plugins --hook maskers
flipkit plugins --check grid flipkit-text-maskers
"""

import argparse
import dataclasses
import json
import sys

from rich import box, console, padding, table

from flipkit import plugins, process
from flipkit.errors import UnknownName, nearest


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"flipkit: {message[:1].upper()}{message[1:]}. --help lists the flags.\n")


def main(argv: list[str] | None = None) -> int:
    """Prints the components and the problems of plugins, or checks components.

    Returns:
        0; with --check, 1 if a component fails or is broken. An unknown name or flag exits with 2.
    """
    parser = _Parser("flipkit plugins", description="List components, or check them.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--hook", help="only what this hook offers: maskers")
    parser.add_argument(
        "--check",
        nargs="*",
        metavar="NAME",
        help="put these components, or those of these distributions, through the checks of "
        "flipkit.testing; without a name, those of all plugins",
    )
    arguments = parser.parse_args(argv)
    kinds = [arguments.hook.removeprefix("flipkit_")] if arguments.hook else plugins.KINDS
    if not {*kinds} <= {*plugins.KINDS}:
        raise UnknownName(f"Unknown hook: {arguments.hook!r}. {nearest(kinds[0], plugins.KINDS)}")
    if arguments.check is not None:
        return _check(arguments.check, kinds, arguments.json)
    components = plugins.listing(*kinds)
    wrong = _problems_of(kinds)
    if arguments.json:
        _print_json(wrong, components=[dataclasses.asdict(c) for c in components])
        return 0
    rows = [(*_row(c), c.summary, c.status.partition(":")[0]) for c in components]
    # Problems without a row of their component.
    shown = {(c.distribution, f"flipkit_{c.kind}") for c in components if c.status != "ok"}
    rows += [
        (p.hook.removeprefix("flipkit_"), "-", str(p.source), p.reason, "broken")
        for p in wrong
        if (p.source.distribution, p.hook) not in shown
    ]
    _print_list(rows, wrong)
    return 0


def _check(names, kinds, as_json):
    """Checks the components of `names`, prints each as it starts, and prints the verdicts."""
    process.skip_fusion_emitters()
    from flipkit.testing.elsewhere import shared_programs  # imports Keras, which a list need not
    from flipkit.testing.installed import check_installed

    def started(component):
        _, name, source = _row(component)
        print(f"Checking {component.kind} {name} ({source})", file=sys.stderr, flush=True)

    verdicts = []
    with shared_programs():
        for verdict in check_installed(*names, kinds=kinds, started=started):
            verdicts.append(verdict)
            print(f"  {verdict.component.name}: {verdict}", file=sys.stderr, flush=True)
    meant = {*names, *(v.component.distribution for v in verdicts)}
    # Also the problems of plugins, those included that arose in the checks.
    wrong = [p for p in _problems_of(kinds) if not names or p.source.distribution in meant]
    wrong += [problem for verdict in verdicts for problem in verdict.problems]
    if as_json:
        found = [
            dataclasses.asdict(v.component)
            | {"verdict": v.status, "detail": v.detail}
            | {"checks": {o.check: {"status": o.status, "message": o.message} for o in v.outcomes}}
            for v in verdicts
        ]
        _print_json(wrong, verdicts=found)
    else:
        rows = [(*_row(v.component), str(v)) for v in verdicts]
        _print_table(("kind", "name", "source", "verdict"), rows, wrong)
    return 1 if wrong or {"fails", "broken"} & {v.status for v in verdicts} else 0


def _problems_of(kinds):
    """Returns the problems of plugins, without those of other kinds' hooks."""
    others = {*plugins.HOOKS} - {f"flipkit_{kind}" for kind in kinds}
    return [problem for problem in plugins.problems() if problem.hook not in others]


def _row(component):
    own = component.entry_point == plugins.BUILT_IN.entry_point
    source = "built in" if own else f"{component.distribution} {component.version}"
    return component.kind, component.name, source


def _print_json(wrong, **printed):
    def plain(found):
        return [
            dataclasses.asdict(p.source) | {"hook": p.hook, "reason": p.reason, "fix": p.fix}
            for p in found
        ]

    printed |= {"problems": plain(wrong), "deprecated": plain(plugins.deprecated())}
    printed["disabled"] = [
        dataclasses.asdict(s) | {"by": by} for s, by in plugins.disabled().items()
    ]
    print(json.dumps(printed, indent=2))


def _print_table(titles, rows, wrong):
    printed = table.Table(box=box.SIMPLE_HEAD)
    for title in titles:
        printed.add_column(title, no_wrap=title not in ("summary", "verdict"))
    for row in rows:
        printed.add_row(*row)
    out = console.Console(markup=False, highlight=False)
    out.print(printed if rows else "Nothing to check.")
    _print_below(out, wrong)


def _print_list(rows, wrong):
    """Prints components by kind, each with its summary, on lines as wide as the terminal."""
    out = console.Console(markup=False, highlight=False)
    kind = None
    for row in rows:
        if row[0] != kind:
            kind = row[0]
            out.print(f"\n{kind}")
        name = "" if row[1] == "-" else f"{row[1]}, "
        status = "" if row[4] == "ok" else f" ({row[4]})"
        out.print(f"  {name}{row[2]}{status}", soft_wrap=True)
        out.print(padding.Padding(row[3].strip(), (0, 0, 0, 6), expand=False))
    out.print()
    _print_below(out, wrong)


def _print_below(out, wrong):
    """Prints the problems, the deprecations and the disabled plugins."""
    for problem in [*wrong, *plugins.deprecated()]:
        out.print(str(problem), soft_wrap=True)
    for source, by in plugins.disabled().items():
        out.print(f"Plugin {source} is left out by {by}.", soft_wrap=True)
