//! Compares polyproc with its peers: `cargo run --release -p polyproc-bench -- start|queue|pool [--json FILE]`.

mod pool;
mod queue;
mod start;
mod table;

const USAGE: &str = "usage: polyproc-bench start|queue|pool [--json FILE]";

/// The command line: the case, its own arguments, and the file for JSON.
struct Options {
    case: String,
    arguments: Vec<String>,
    json: Option<std::path::PathBuf>,
}

fn parse_options() -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { case: String::new(), arguments: Vec::new(), json: None };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("json") => options.json = Some(arguments.value()?.into()),
            Value(value) if options.case.is_empty() => options.case = value.string()?,
            Value(value) => options.arguments.push(value.string()?),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(options)
}

#[crossmist::main]
fn main() {
    procspawn::init();
    let code = run();
    if code != 0 {
        std::process::exit(code);
    }
}

fn run() -> i32 {
    let options = match parse_options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("polyproc-bench: {error}\n{USAGE}");
            return 2;
        }
    };
    let done = match options.case.as_str() {
        "start" => start::run(options.json.as_deref()),
        "queue" => queue::run(options.json.as_deref()),
        "pool" => pool::run(options.json.as_deref()),
        // `start` runs these cases in processes of its own.
        "start-in" => start::run_in(&options.arguments),
        "start-fork" => start::run_fork(&options.arguments),
        _ => {
            eprintln!("{USAGE}");
            return 2;
        }
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("polyproc-bench: {error}");
            1
        }
    }
}
