"""The processes of experiments: several threads start them and wait for their ends."""

from concurrent.futures import ThreadPoolExecutor

from cli.processes import start, wait_for


def test_the_status_of_a_process_is_right_while_another_thread_starts_one(tmp_path):
    """Regression: a run that ended while another one started counted as failed, with status 255."""
    script = tmp_path / "ends.py"
    script.write_text("import sys\nsys.exit(int(sys.argv[1]))\n")

    def run(number):
        child = start(script, [str(number % 2)], tmp_path / f"{number}.log", 1, tmp_path / f"{number}.lock")
        return wait_for(child)

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(run, range(30)))
    assert statuses == [number % 2 for number in range(30)]
