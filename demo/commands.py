"""`sparse-vlm demo`, where this folder is: in a clone."""

import argparse

from demo.app import build_parser, run


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `demo` to the parser of `sparse-vlm`, with the arguments of demo/app.py."""
    text = "a chat in the browser that shows where the model looks"
    demo = commands.add_parser(
        "demo",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="examples:\n  sparse-vlm demo --model runs/quickstart/model\n"
        "  sparse-vlm demo --model runs/quickstart/model --compare runs/quickstart/dense/model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[build_parser()],
        conflict_handler="resolve",  # both have --help
    )
    demo.set_defaults(run=run)
