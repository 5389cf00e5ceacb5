"""The tree of errors: what it promises to the API, to Prefect and to the reader of the docs."""

from __future__ import annotations

import pickle
from collections import defaultdict

import pytest

from rehost.errors import RehostError, RunError, SourceUnreachable, error_classes, error_of
from tools import errors_doc


def test_every_code_belongs_to_one_class() -> None:
    classes = defaultdict(set)
    errors_doc.page()  # imports every module, for errors that are declared where they are raised
    for cls in error_classes():
        classes[cls.code].add(cls)
    assert not {code: found for code, found in classes.items() if len(found) > 1}


@pytest.mark.parametrize("cls", list(error_classes()), ids=lambda cls: cls.code)
def test_an_error_has_a_sentence_and_a_remedy_and_a_code_of_the_contract_s_form(cls: type[RehostError]) -> None:
    assert cls.__doc__ and cls.remedy.endswith((".", ")"))
    resource, _, problem = cls.code.partition(".")
    assert resource[:1].isupper() and (not problem or problem[:1].isupper())


def test_a_missing_fact_never_hides_the_error() -> None:
    assert "<host>" in str(SourceUnreachable(reason="no route"))


def test_an_error_survives_the_way_to_another_process() -> None:
    error = SourceUnreachable(host="web1", reason="no route")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.facts) == (SourceUnreachable, str(error), error.facts)


def test_an_error_told_by_code_and_sentence_is_of_its_class() -> None:
    error = error_of("Boot.KernelPanic", "The kernel panicked: so it says")
    assert (error.code, error.message, error.exit_code) == ("Boot.KernelPanic", "The kernel panicked: so it says", 20)
    assert type(error_of("No.SuchCode", "x")) is RunError


def test_the_page_of_errors_is_the_one_that_the_classes_make() -> None:
    assert errors_doc.PAGE.read_text(encoding="utf-8") == errors_doc.page(), "run `make docs`"
