# ruff: noqa: INP001 - a program
"""Print the chart as plain manifests: `python deploy/kubernetes/render.py [VALUES.yaml] > deploy/kubernetes/manifests.yaml`.

Needs `pip install helm-python-sdk`, which brings Helm itself as a library. With a helm program, `helm template inference-svc
deploy/kubernetes/chart --set auth.secret=inference-svc-tokens` says the same.
"""

import sys
from pathlib import Path

import helm_python as helm

CHART = Path(__file__).resolve().parent / "chart"
RELEASE = "inference-svc"
DEFAULT = f"auth: {{ secret: {RELEASE}-tokens }}\n"


def render(values: str = DEFAULT) -> str:
    """Every manifest, in the order in which they may be applied.

    Raises:
        helm.HelmError: The chart or the values are of no use; the text says why.
    """
    report = helm.lint(CHART, helm.values_from_yaml(values), strict=True)
    if report["errors"]:
        raise helm.HelmRenderError("; ".join(report["errors"]))
    made = helm.Chart.load(CHART).render(helm.values_from_yaml(values), name=RELEASE, namespace="default")
    texts = [text.strip().removeprefix("---\n") for path, text in sorted(made.items()) if path.endswith(".yaml")]
    return "---\n" + "\n---\n".join(text for text in texts if text) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render(Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else DEFAULT))
