"""What is in a page: its code blocks, the commands in its text, its links."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^`\n]*)\n(?P<code>.*?)^ *(?P=fence)`*[ \t]*$", re.DOTALL | re.MULTILINE
)
NOT_RUN = re.compile(r"(?:^|\n) *(?:% not run(?P<comment>[^\n]*)|<!-- not run(?P<html>.*?)-->)\s*\Z", re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S.*\n)+")
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)|<img[^>]*\ssrc=\"(?P<source>[^\"]+)\"")
HEADING = re.compile(r"^#+ (.+?) *$", re.MULTILINE)
# First words of the indented lines and of the code spans that are commands.
COMMANDS = ("sb3-trpo-plus", "rl_zoo3", "python", "pip", "make")


@dataclass(frozen=True)
class Block:
    """
    A fenced block of code.

    :param language: after the fence: python, bash, {toctree}
    :param code: without its indentation
    :param line: of the first line of code in the page, from 1
    :param not_run: what the comment before it says, why it can't be run here; None: there is no such comment
    """

    language: str
    code: str
    line: int
    not_run: str | None


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]


def name_of(page: Path) -> str:
    """Of a test for the page."""
    return str(page.relative_to(ROOT))


def blocks(text: str) -> list[Block]:
    """The fenced blocks, in order."""
    found = []
    for match in FENCE.finditer(text):
        lines = [line.removeprefix(match["indent"]) for line in match["code"].splitlines()]
        marked = NOT_RUN.search(text[: match.start()])
        reason = None if marked is None else (marked["comment"] or marked["html"] or "").lstrip(":").strip()
        start = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["language"].strip(), "\n".join(lines) + "\n", start, reason))
    return found


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text)


def commands_in_prose(text: str) -> list[str]:
    """Commands in code spans and in indented lines; "..." stands for words that are left out, and is no command."""
    plain = prose(text)
    spans = [" ".join(span.split()) for span in SPAN.findall(plain)]
    indented = [line.strip() for lines in INDENTED.findall(plain) for line in lines.splitlines()]
    candidates = [words for words in (*spans, *indented) if words.startswith(tuple(f"{name} " for name in COMMANDS))]
    return [words for words in candidates if "..." not in words and "…" not in words]


def commands(script: str) -> list[list[str]]:
    """The simple commands of a shell script, word by word: without comments, loops, assignments; variables are 1."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\$\{?\w+\}?", "1", line), posix=True, punctuation_chars="();<>|&")
        lexer.commenters, lexer.whitespace_split = "#", True
        current: list[str] = []
        for word in (*lexer, ";"):
            if not set(word) <= set("();<>|&"):
                current.append(word)
                continue
            while current and (current[0] in ("do", "then") or re.match(r"[A-Z_]+=", current[0])):
                current.pop(0)
            if current and current[0] not in ("for", "done", "if", "fi"):
                found.append(current)
            current = []
    return found


def links(text: str) -> list[str]:
    """Targets of links and pictures that are not addresses of the network."""
    targets = [match["target"] or match["source"] for match in LINK.finditer(SPAN.sub("", prose(text)))]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What a link may name after the #, as GitHub and MyST make it of the headings."""
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(text))]
    return {heading.replace(" ", "-") for heading in words}
