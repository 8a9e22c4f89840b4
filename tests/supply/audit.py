"""Ask pip-audit whether locked versions have known vulnerabilities: `make audit`.

Exit codes: 0 none is known, 1 some are, 4 nobody could be asked. What was not looked up is never called clean.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OK, FOUND, UNCHECKED = 0, 1, 4


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code and what to say of a report of `pip-audit --format json`."""
    packages = report.get("dependencies", [])
    skipped = [p["name"] for p in packages if "skip_reason" in p]
    said = [
        f"{p['name']} {p['version']}: {', '.join([v['id'], *v.get('aliases', [])])}"
        + (f"; fixed in {', '.join(v['fix_versions'])}" if v.get("fix_versions") else "; no fix yet")
        for p in packages
        for v in p.get("vulns", [])
    ]
    checked = len(packages) - len(skipped)
    if not checked:
        return UNCHECKED, [
            "the vulnerability service cannot be reached, or knows none of the packages; nothing was checked"
        ]
    if skipped:
        said.append(f"not checked: {', '.join(skipped)}")
    found = any(p.get("vulns") for p in packages)
    said.append(f"{checked} packages checked, " + ("vulnerabilities found" if found else "no known vulnerability"))
    return FOUND if found else OK, said


def main(program: str, locked: str) -> int:
    """Run pip-audit over locked versions and print what it found."""
    if not Path(program).is_file():
        print("pip-audit is not here and could not be installed; nothing was checked")
        return UNCHECKED
    command = [
        program,
        "--requirement",
        locked,
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"]
        print(f"the vulnerability service cannot be reached; nothing was checked ({last[0][:300]})")
        return UNCHECKED
    code, said = verdict(report)
    print("\n".join(said))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
