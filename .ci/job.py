"""Run a command as one job of the Snakefile: python .ci/job.py --log FILE LABEL COMMAND ...

What it prints goes to the log; a line at its start, at its end and now and then its progress bar go to the terminal. It ends with
whoever started it, so that nothing of a killed workflow goes on working unseen."""
import argparse, os, re, signal, subprocess, sys, time
from pathlib import Path

EVERY = 20.   # seconds between two looks at the progress bar
BAR = re.compile(r"[^\r\n]*\d+%\|[^\r\n]*")

def say(text: str, stream=sys.stdout) -> None:
    "One line, at once."
    print(f"{time.strftime('%H:%M:%S')} {text}", file=stream, flush=True)

def progress(log: Path) -> str | None:
    "The last progress bar in the end of the log, without the drawing of the bar."
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 10_000))
        bars = BAR.findall(file.read().decode(errors="replace"))
    return re.sub(r"\|[^|]*\|", "", bars[-1]).strip() if bars else None

def stop(job: subprocess.Popen) -> None:
    "Interrupt the job and what it started; end it by force if it does not listen."
    for number, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 5), (signal.SIGKILL, None)):
        if job.poll() is not None: return
        os.killpg(job.pid, number)
        try: job.wait(patience)
        except subprocess.TimeoutExpired: continue

def watch(job: subprocess.Popen, label: str, log: Path) -> int:
    "Wait for the job while its parent lives; its exit status."
    parent, shown = os.getppid(), time.monotonic()
    while job.poll() is None:
        time.sleep(.2)
        if os.getppid() != parent: raise SystemExit(1)
        if time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            if bar := progress(log): say(f"{label}: {bar}")
    return job.returncode

def main() -> int:
    "Start the job, watch it, say how it ended."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("label")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    given.log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{given.label} ...")
    begin = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.default_int_handler)
    with open(given.log, "wb") as log: job = subprocess.Popen(given.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try: status = watch(job, given.label, given.log)
    except KeyboardInterrupt: status = 130
    finally: stop(job)
    if status == 130: say(f"{given.label}: interrupted; the same command goes on from here", sys.stderr)
    elif status:
        lines = given.log.read_text(errors="replace").splitlines()
        say(f"{given.label}: failed. The end of {given.log}:\n" + "\n".join(f"    {line}" for line in lines[-12:]), sys.stderr)
    else: say(f"{given.label}: done in {time.monotonic() - begin:.0f} s")
    return status

if __name__ == "__main__": sys.exit(main())
