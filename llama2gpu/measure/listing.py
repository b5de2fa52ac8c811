"""A listing of machine code or of LLVM's form of it: instructions, where they branch, and loops."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Instruction:
    """One instruction. targets: labels it may go to; falls: whether it may go on to the next."""

    opcode: str
    text: str
    targets: tuple[str, ...] = ()
    falls: bool = True


@dataclass(frozen=True)
class Listing:
    """The instructions of one function, and the index at which each label stands."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def loops(self) -> list[frozenset[int]]:
        """Indices of the instructions of each natural loop, inner loops before outer ones.

        Loops with one header are one loop, and code placed out of line belongs to it too.
        """
        following = self._following()
        dominators = _dominators(following)
        bodies: dict[int, set[int]] = {}
        for start in dominators:
            for header in following[start]:
                if header in dominators[start]:
                    body = bodies.setdefault(header, {header})
                    body |= _reaching(start, header, following, dominators)
        blocks = self._blocks()
        spread = [frozenset(i for b in body for i in blocks[b]) for body in bodies.values()]
        return sorted(spread, key=len)

    def _blocks(self) -> list[range]:
        """Runs of instructions that are entered at the first and left at the last."""
        ends = {i + 1 for i, made in enumerate(self.instructions) if made.targets or not made.falls}
        cuts = sorted({0, len(self.instructions), *self.labels.values(), *ends})
        return [range(a, b) for a, b in pairwise(cuts)]

    def _following(self) -> list[list[int]]:
        """For each block, the blocks that may come next."""
        blocks = self._blocks()
        at = {block.start: i for i, block in enumerate(blocks)}
        found = []
        for i, block in enumerate(blocks):
            last = self.instructions[block[-1]]
            next_ones = [at[self.labels[t]] for t in last.targets if self.labels.get(t) in at]
            found.append(next_ones + [i + 1] * (last.falls and i + 1 < len(blocks)))
        return found


def _dominators(following: list[list[int]]) -> dict[int, set[int]]:
    """For each block that can be reached, those that every way to it goes through."""
    order, seen = [], set()
    waiting = [0] if following else []
    while waiting:
        block = waiting.pop()
        if block not in seen:
            seen.add(block)
            order.append(block)
            waiting += following[block]
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for after in following[block]:
            before[after].append(block)
    found = {block: {0} if block == 0 else set(order) for block in order}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = {block} | set.intersection(*(found[b] for b in before[block]))
            changed |= new != found[block]
            found[block] = new
    return found


def _reaching(
    start: int, header: int, following: list[list[int]], reachable: Iterable[int]
) -> set[int]:
    """Blocks from which `start` can be reached without passing the header."""
    before: dict[int, list[int]] = {}
    for block in reachable:
        for after in following[block]:
            before.setdefault(after, []).append(block)
    found, waiting = {header}, [start]
    while waiting:
        block = waiting.pop()
        if block not in found:
            found.add(block)
            waiting += before.get(block, [])
    return found


#: An address, a predicate, an opcode, operands.
_SASS = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*) ?(.*)")


def parse_sass(text: str) -> Listing:
    """A kernel from what `nvdisasm -c` prints; subroutines and the padding are left off."""
    made: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"([\w.$]+):$", line):
            if made and label[1].startswith("$"):
                break
            labels[label[1]] = len(made)
        elif found := _SASS.match(line):
            predicate, opcode, operands = found.groups()
            made.append(_sass_instruction(predicate, opcode, operands.rstrip(" ;")))
    return _without_padding(made, labels)


def _sass_instruction(predicate: str | None, opcode: str, operands: str) -> Instruction:
    name = opcode.partition(".")[0]
    jumps = name in ("BRA", "JMP")
    targets = tuple(re.findall(r"`\((\.L\w+)\)", operands)) if jumps else ()
    ends = name in ("EXIT", "RET", "BRX", "JMX", "KILL") or (jumps and operands.startswith("`("))
    return Instruction(opcode, operands, targets, bool(predicate) or not ends)


def _without_padding(made: list[Instruction], labels: dict[str, int]) -> Listing:
    """Drops the branch to itself and the NOPs behind the last instruction that is reached."""
    end = len(made)
    while end and (
        made[end - 1].opcode == "NOP"
        or (not made[end - 1].falls and [labels.get(t) for t in made[end - 1].targets] == [end - 1])
    ):
        end -= 1
    kept = {label: at for label, at in labels.items() if at < end}
    return Listing(tuple(made[:end]), kept)


def parse_amdgcn(text: str) -> Listing:
    """A kernel from AMD's assembly."""
    made: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.partition(".Lfunc_end")[0].splitlines():
        code = line.partition(";")[0].rstrip()
        if label := re.match(r"([\w.$]+):$", code):
            labels[label[1]] = len(made)
        elif found := re.match(r"\s+([a-z]\w+)\s*(.*)", code):
            opcode, operands = found.groups()
            jumps = opcode == "s_branch" or opcode.startswith("s_cbranch")
            ends = opcode in ("s_branch", "s_endpgm", "s_setpc_b64")
            targets = (operands,) if jumps else ()
            made.append(Instruction(opcode, operands, targets, not ends))
    return Listing(tuple(made), {label: at for label, at in labels.items() if at < len(made)})


def parse_llir(text: str) -> Listing:
    """The kernel of a module of LLVM's; an instruction's text is its whole line."""
    made: list[Instruction] = []
    labels: dict[str, int] = {}
    body = re.search(r"^define \w*kernel .*?\{$(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    for line in body[1].splitlines() if body else []:
        if label := re.match(r'"?([\w.$-]+)"?:', line):
            labels[label[1]] = len(made)
        elif found := re.match(r"\s+(?:%[\w.$-]+ = )?(?:tail |musttail )?([a-z]\w*)", line):
            opcode = found[1]
            targets = tuple(re.findall(r'label %"?([\w.$-]+)', line))
            made.append(
                Instruction(opcode, line, targets, opcode not in ("br", "ret", "unreachable"))
            )
    return Listing(tuple(made), {label: at for label, at in labels.items() if at < len(made)})
