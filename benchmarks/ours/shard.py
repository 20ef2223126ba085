"""One shard in a process of its own: says when it is ready, waits for a line, predicts.

python -m ours.shard CORE FLAG…

The first line it prints is "ready", the last one photos, seconds and processor seconds of the
pipeline, without what comes before it.
"""

import os
import sys
import time

if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})  # before any thread starts

    from carvana_tf import cli, commands
    from carvana_tf.inference import pipeline

    predict = pipeline.run

    def run(*arguments, **further):
        """Measures the pipeline."""
        print("ready", flush=True)
        sys.stdin.readline()
        start, spent = time.perf_counter(), time.process_time()
        outcome = predict(*arguments, **further)
        seconds, spent = time.perf_counter() - start, time.process_time() - spent
        print(f"measured {outcome.written} {seconds} {spent}", flush=True)
        return outcome

    setattr(pipeline, "run", run)  # noqa: B010
    sys.exit(cli.main(commands.find("predict"), sys.argv[2:]))
