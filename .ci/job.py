"""Run a Python module as one job of the Snakefile: python .ci/job.py LOG MODULE [ARGUMENT ...]

What it prints goes to the log; a line at its start, at its end and now and then its progress bar go to the terminal. It ends with
whoever started it, so that nothing of a killed workflow goes on working unseen."""
import os, re, signal, subprocess, sys, time
from pathlib import Path

EVERY = 20.   # seconds between two looks at the progress bar
BAR = re.compile(r"[^\r\n]*\d+%\|[^\r\n]*")
ERROR = re.compile(r"(?:avmae|\w*(?:Error|Failures|NonFinite)): (.+)")   # of the command line, or the last line of a traceback

def say(text: str) -> None:
    "One line, at once."
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

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

def watch(job: subprocess.Popen, name: str, log: Path) -> int:
    "Wait for the job while its parent lives; its exit status."
    parent, shown = os.getppid(), time.monotonic()
    while job.poll() is None:
        time.sleep(.2)
        if os.getppid() != parent: raise SystemExit(1)
        if time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            if bar := progress(log): say(f"{name}: {bar}")
    return job.returncode

def label(log: Path) -> str:
    "'[3/24] pretrained-audio-seed0': the name of the log, and its place among all steps."
    steps = os.environ.get("AVMAE_STEPS", log.stem).split()
    return f"[{steps.index(log.stem) + 1}/{len(steps)}] {log.stem}"

def reason(log: Path) -> str:
    "The sentence that a failed job left at the end of its log, or the last lines where that is none."
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = ERROR.fullmatch(lines[-1]) if lines else None
    return f"{said[1]} (more in {log})" if said else f"the end of {log}:\n" + "\n".join(f"    {line}" for line in lines[-12:])

def main(log: Path, *module: str) -> int:
    "Start the job, watch it, say how it ended."
    begin, name = time.monotonic(), label(log)
    say(f"{name} ...")
    for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.default_int_handler)
    with open(log, "wb") as file:
        job = subprocess.Popen([sys.executable, "-m", *module], stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try: status = watch(job, name, log)
    except KeyboardInterrupt: status = 130
    finally: stop(job)
    if status == 130: say(f"{name}: interrupted; the same command goes on from here")
    elif status: say(f"{name}: failed: {reason(log)}")
    else: say(f"{name}: done in {time.monotonic() - begin:.0f} s")
    return status

if __name__ == "__main__": sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
