"""Fail when a JUnit report holds no tests, or skipped ones."""

import sys
import xml.etree.ElementTree as ElementTree


def main(report: str) -> str | None:
    """Return what is wrong with the report, or None."""
    suites = list(ElementTree.parse(report).iter("testsuite"))
    tests = sum(int(suite.get("tests", 0)) for suite in suites)
    skipped = [case for case in ElementTree.parse(report).iter("testcase") if case.find("skipped") is not None]
    if not tests:
        return "no test ran"
    if skipped:
        names = ", ".join(f"{case.get('classname')}.{case.get('name')}" for case in skipped)
        return f"{len(skipped)} of {tests} tests were skipped: {names}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
