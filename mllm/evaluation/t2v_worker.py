"""Worker of the scorer CLIP-FlanT5; runs in the environment of t2v-metrics and imports nothing of this toolkit.

`python t2v_worker.py MODEL`; a request is a JSON line {"images": [files], "texts": [texts]}, pairs in order, and the
reply a line with the list of scores. What the tool prints goes to the error output, so that replies stay readable.
"""

import json
import sys


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    import t2v_metrics

    score = t2v_metrics.VQAScore(model=sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        pairs = [{"images": [i], "texts": [t]} for i, t in zip(request["images"], request["texts"])]  # noqa: B905
        scores = score.batch_forward(dataset=pairs, batch_size=len(pairs))
        print(json.dumps([float(value) for value in scores.flatten()]), file=answers, flush=True)


if __name__ == "__main__":
    main()
