#!/usr/bin/env python3
"""What must not compile: handlers with a misspelled or uncallable callback. Each case compiles once as it should be, and fails once
with the mistake in it, for the reason its author is to read.

    tests/compile_failures.py g++ [clang++-19 ...]

Prints one line for every case that is not as it should be, and ends with `N passed, N failed`; exits 1 if one failed.
"""

import concurrent.futures
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

HANDLER = """
struct Handler {
  void on_receive(vigil::Connection&, vigil::Bytes) {}
  void on_close(vigil::Connection&, const vigil::CloseRecord&) {}
  %s
};
struct Shard {
  Handler make_handler(vigil::Connection&) { return Handler(); }
  void on_shed(const vigil::CloseRecord&) {}
};
"""
USE = """
void use(vigil::Reactor& reactor) { vigil::Listener<Handler> listener(reactor); vigil::Connector<Handler> connector(reactor); }
void serve() { vigil::Server<Handler> plain; vigil::Server<Handler, Shard> made({}, [](vigil::Worker&) { return Shard(); }); }
"""
WITHOUT_DEFAULT = "explicit Handler(int) {}"

# Name, the right text, the mistake, what the compiler is to say.
CASES = [
    ("a misspelled on_receive", "void on_receive(", "void on_recieve(", "a handler needs void on_receive"),
    ("a misspelled on_close", "void on_close(", "void on_closed(", "a handler needs void on_close"),
    ("an on_receive that takes other arguments", "vigil::Bytes)", "vigil::Bytes, int)", "a handler needs void on_receive"),
    ("an on_receive of a type that means nothing yet", "void on_receive(", "bool on_receive(", "a handler needs void on_receive"),
    ("an on_close that takes the record as its own to change", "const vigil::CloseRecord&", "vigil::CloseRecord&", "a handler needs void on_close"),
    ("an on_open that can't be called", "", "void on_open(int) {}", "on_open must be callable"),
    ("an on_open that wants a copy", "", "void on_open(vigil::Connection) {}", "on_open must be callable"),
    ("a private on_open", "", "private: void on_open(vigil::Connection&) {}", "on_open must be callable"),
    ("an on_open that is no function", "", "int on_open = 0;", "on_open must be callable"),
    ("an overloaded on_open that can't be called", "", "void on_open() {} void on_open(int) {}", "on_open must be callable"),
    ("a templated on_send_drained that can't be called", "", "template <class T> void on_send_drained(T*) {}", "on_send_drained must be callable"),
    ("an on_peer_finished with one argument too many", "", "void on_peer_finished(vigil::Connection&, int) {}", "on_peer_finished must be callable"),
    ("an on_deadline that answers nothing", "", "void on_deadline(vigil::Connection&, vigil::Deadline) {}", "on_deadline must be callable"),
    ("an on_deadline that takes no kind", "", "vigil::Duration on_deadline(vigil::Connection&) { return {}; }", "on_deadline must be callable"),
    ("an on_peer_gone_while_paused that takes a record", "", "void on_peer_gone_while_paused(vigil::Connection&, const vigil::CloseRecord&) {}", "on_peer_gone_while_paused must be callable"),
    ("a handler aligned beyond its slot", "struct Handler {", "struct alignas(128) Handler {", "aligned to 64 bytes"),
    ("a handler that can't be made without make_handler", "", WITHOUT_DEFAULT, "Handler"),
    ("a make_handler of a shard that takes something else", "make_handler(vigil::Connection&)", "make_handler(vigil::Worker&)", "make_handler must be callable"),
    ("a make_handler of a shard that answers something else", "Handler make_handler(", "Shard make_handler(", "make_handler must be callable"),
    ("a misspelled make_handler of a shard whose handler needs it", "void on_receive(", "Handler(int); void on_receive(", "needs a shard with Handler make_handler"),
    ("an on_shed of a shard that can't be called", "void on_shed(const vigil::CloseRecord&)", "void on_shed(int)", "on_shed must be callable"),
    ("a make_shard that returns no shard", "{ return Shard(); }", "{ return Handler(); }", "must return the shard"),
    ("a make_shard that takes no worker", "[](vigil::Worker&)", "[](vigil::Reactor&)", "Server"),
    *(
        (f"a final handler with {name}", "struct Handler {", "struct Handler final { " + wrong, "must be callable")
        for name, wrong in (
            ("an on_open that can't be called", "void on_open(int) {}"),
            ("a static on_open that can't be called", "static void on_open(int) {}"),
            ("an on_open that is no function", "int on_open = 0;"),
            ("an overloaded on_open that can't be called", "void on_open() {} void on_open(int) {}"),
            ("an on_open overloaded with too many arguments", "void on_open(vigil::Connection&, int) {} void on_open(int, int, int) {}"),
            ("a templated on_open that can't be called", "template <class T> void on_open(T*) {}"),
            ("a templated on_open with one argument too many", "void on_open(auto&, int) {}"),
            ("an overloaded on_deadline that takes no kind", "vigil::Duration on_deadline(auto&) { return {}; } void on_deadline() {}"),
        )
    ),
    ("a final shard with an overloaded on_accept_paused that can't be called", "struct Shard {", "struct Shard final { void on_accept_paused() {} void on_accept_paused(int) {}", "on_accept_paused must be callable"),
]


def compile_text(compiler, text):
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", f"-I{ROOT / 'include'}", "-xc++", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


def program(optional=""):
    return "#include <vigil/vigil.hpp>\n" + HANDLER % optional + USE


def check(compiler, case):
    name, right, wrong, message = case
    mistaken = program().replace(right, wrong, 1) if right else program(wrong)
    outcome = compile_text(compiler, mistaken)
    if outcome.returncode == 0:
        return f"{compiler}: {name}: compiles"
    if message not in outcome.stderr:
        return f"{compiler}: {name}: is refused, but not in the words '{message}':\n{outcome.stderr}"
    return None


def check_plain(compiler):
    outcome = compile_text(compiler, program())
    return None if outcome.returncode == 0 else f"{compiler}: the plain handler is refused:\n{outcome.stderr}"


def main():
    compilers = sys.argv[1:] or ["g++"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        checks = [pool.submit(check_plain, compiler) for compiler in compilers]
        checks += [pool.submit(check, compiler, case) for compiler in compilers for case in CASES]
        problems = [problem for problem in (one.result() for one in checks) if problem is not None]
    for problem in problems:
        print(problem)
    print(f"{len(checks) - len(problems)} passed, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
