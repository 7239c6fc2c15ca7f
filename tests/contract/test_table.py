"""The page that lists the contract is that of these tests."""

from pathlib import Path

from tests.contract.table import cases, modules, page


def test_page_is_up_to_date() -> None:
    """Made by ``python -m tests.contract.table > docs/contract.md``."""
    assert (Path(__file__).parents[2] / "docs" / "contract.md").read_text() == page()


def test_every_case_says_what_it_promises() -> None:
    assert [test.__name__ for module in modules() for test in cases(module) if not test.__doc__] == []
