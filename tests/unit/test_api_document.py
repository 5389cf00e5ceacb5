"""The OpenAPI document: what it shows as an answer is one."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from fastapi.testclient import TestClient

from api.examples import examples
from tests.support.api import empty as empty


def answers(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The contents of all answers that grant something, by the names of their schemas."""
    found: dict[str, list[dict[str, Any]]] = {}
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                content = answer.get("content", {}).get("application/json", {})
                if status.startswith("2") and "$ref" in content.get("schema", {}):
                    found.setdefault(content["schema"]["$ref"].rpartition("/")[2], []).append(content)
    return found


def test_answers_have_examples_that_are_such_answers(empty: TestClient) -> None:
    document = empty.get("/openapi.json").json()
    found = answers(document)
    assert set(examples()) & set(found) >= {"Source", "Job", "Page_Job_", "Page_Run_", "ImageAnswer"}
    for name, contents in found.items():
        for content in contents:
            if name in examples():
                schema = {**content["schema"], "components": document["components"]}
                assert jsonschema_rs.validator_for(schema).is_valid(content["example"]), name
