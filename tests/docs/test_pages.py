"""What tests/test_docs.py takes out of a page is what stands in it."""

from tests.docs.pages import anchors, blocks, commands, commands_in_prose, links

PAGE = """# Two ways, `train` and more

Text with `rl_zoo3 train --env
CartPole-v1`, `rl_zoo3 ... --algo trpo` and `trained`. ![A picture](images/one.png) [elsewhere](https://example.com)

    make train  # by make

```python
steps = 1  # [not](a-link.md)
```

% not run: needs the network
```bash
wget page
```

1. An item

   ```bash
   ls
   ```

<!-- not run:
needs a GPU -->
```python
2
```

[here](other.md#part), [text](#two-ways-train-and-more)
"""


def test_blocks_have_their_lines_and_their_reasons() -> None:
    found = [(block.language, block.code, block.not_run) for block in blocks(PAGE)]
    assert found == [
        ("python", "steps = 1  # [not](a-link.md)\n", None),
        ("bash", "wget page\n", "needs the network"),
        ("bash", "ls\n", None),
        ("python", "2\n", "needs a GPU"),
    ]
    assert [PAGE.splitlines()[block.line - 1].strip() for block in blocks(PAGE)] == [code.strip() for _, code, _ in found]


def test_commands_in_prose_are_those_of_spans_and_indented_lines() -> None:
    assert commands_in_prose(PAGE) == ["rl_zoo3 train --env CartPole-v1", "make train  # by make"]


def test_links_leave_out_code_and_the_network() -> None:
    assert links(PAGE) == ["images/one.png", "other.md#part", "#two-ways-train-and-more"]


def test_anchors_are_made_of_headings_alone() -> None:
    assert anchors(PAGE) == {"two-ways-train-and-more"}


def test_commands_are_taken_out_of_loops_and_comments() -> None:
    script = """
        OMP_NUM_THREADS=1 make test  # all
        for seed in 0 1; do
            sb3-trpo-plus train --seed $seed \\
                --env "A B" && ls | wc
        done
        cd x; python -m y
    """
    assert commands(script) == [
        ["make", "test"],
        ["sb3-trpo-plus", "train", "--seed", "1", "--env", "A B"],
        ["ls"],
        ["wc"],
        ["cd", "x"],
        ["python", "-m", "y"],
    ]
