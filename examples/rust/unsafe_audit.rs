//! Counts the `unsafe` code below a folder, with one parser per worker process.
//!
//! ```text
//! cargo run --release --example unsafe_audit -- [FOLDER] [--workers N] [--timeout SECONDS] [--memory MIB] [--json]
//! ```
//!
//! Without a folder it reads the sources of this project's own dependencies, and four files beside this program, three of which
//! cannot be parsed. One nests so deeply that the parser overflows its stack: that kills the worker, not the job.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use polyproc::{Failure, Pool, PoolBuilder};
use serde::{Deserialize, Serialize};
use syn::visit::{self, Visit};

const USAGE: &str = "usage: unsafe_audit [FOLDER] [--workers N] [--timeout SECONDS] [--memory MIB] [--json]

  FOLDER             where to look for .rs files; default: the sources of this project's dependencies
  --workers N        worker processes; default: one per processor
  --timeout SECONDS  how long one file may take; default: 60
  --memory MIB       how much memory a worker may take; default: 2048
  --json             print JSON instead of a table";

/// The counts of a file, or sums of them. Code inside macros is not parsed, so it does not count.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct Counts {
    files: usize,
    lines: usize,
    functions: usize,
    unsafe_functions: usize,
    unsafe_blocks: usize,
    seconds: f64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.lines += other.lines;
        self.functions += other.functions;
        self.unsafe_functions += other.unsafe_functions;
        self.unsafe_blocks += other.unsafe_blocks;
        self.seconds += other.seconds;
    }

    fn signature(&mut self, signature: &syn::Signature) {
        self.functions += 1;
        self.unsafe_functions += usize::from(matches!(signature.safety, syn::Safety::Unsafe(_)));
    }
}

impl<'ast> Visit<'ast> for Counts {
    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.signature(signature);
        visit::visit_signature(self, signature);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.unsafe_blocks += 1;
        visit::visit_expr_unsafe(self, block);
    }
}

/// Counts one file, in a worker. Fails with the reason if the file cannot be read or parsed.
fn audit(path: PathBuf) -> Result<Counts, String> {
    let start = Instant::now();
    let bytes = std::fs::read(&path).map_err(|error| format!("cannot be read: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|error| format!("invalid UTF-8: {}", error.utf8_error()))?;
    let file = syn::parse_file(&text).map_err(|error| {
        let at = error.span().start();
        format!("syntax error at {}:{}: {error}", at.line, at.column + 1)
    })?;
    let mut counts = Counts { files: 1, lines: text.lines().count(), ..Counts::default() };
    counts.visit_file(&file);
    counts.seconds = start.elapsed().as_secs_f64();
    Ok(counts)
}

#[derive(Debug)]
struct Options {
    folder: Option<PathBuf>,
    workers: Option<usize>,
    timeout: Duration,
    memory_mib: u64,
    json: bool,
    help: bool,
}

fn parse_options() -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options {
        folder: None,
        workers: None,
        timeout: Duration::from_secs(60),
        memory_mib: 2048,
        json: false,
        help: false,
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Short('h') | Long("help") => options.help = true,
            Long("json") => options.json = true,
            Long("timeout") => {
                let seconds: f64 = arguments.value()?.parse()?;
                options.timeout = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
            }
            Long("memory") => options.memory_mib = arguments.value()?.parse()?,
            Long("workers") => options.workers = Some(arguments.value()?.parse()?),
            Value(folder) if options.folder.is_none() => options.folder = Some(folder.into()),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(options)
}

/// Returns the folders of this project's dependencies that cargo has unpacked, and this example's own data.
fn default_folders() -> Vec<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = manifest.ancestors().nth(2).unwrap_or(manifest);
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).unwrap_or_default();
    let registries = std::fs::read_dir(cargo.join("registry/src")).into_iter().flatten().flatten();
    let registries: Vec<_> = registries.map(|entry| entry.path()).collect();
    let packages = dependencies(&std::fs::read_to_string(here.join("Cargo.lock")).unwrap_or_default());
    packages
        .iter()
        .flat_map(|package| registries.iter().map(move |registry| registry.join(package)))
        .chain([here.join("examples/rust/data/unsafe_audit")])
        .filter(|folder| folder.is_dir())
        .collect()
}

/// Returns `NAME-VERSION` of each dependency of the package `polyproc` in a `Cargo.lock`, also of its examples and tests.
fn dependencies(lock: &str) -> BTreeSet<String> {
    let lock: toml::Table = lock.parse().unwrap_or_default();
    let packages = lock.get("package").and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let text = |package: &toml::Value, key: &str| package.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let mut found = BTreeSet::new();
    let mut wanted = vec!["polyproc".to_owned()];
    while let Some(dependency) = wanted.pop() {
        // "name", or "name version" if there are several versions.
        let (name, version) =
            dependency.split_once(' ').map_or((&*dependency, None), |(name, version)| (name, Some(version)));
        for package in packages.iter().filter(|package| text(package, "name").as_deref() == Some(name)) {
            let own_version = text(package, "version").unwrap_or_default();
            if version.is_none_or(|version| version == own_version) && found.insert(format!("{name}-{own_version}")) {
                let further = package.get("dependencies").and_then(toml::Value::as_array);
                wanted.extend(further.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)));
            }
        }
    }
    found
}

/// Returns the `.rs` files below `folder`, each with its crate: the nearest folder above it with a `Cargo.toml`.
fn rust_files(folder: &Path) -> Vec<(PathBuf, String)> {
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let crate_of = |path: &Path| {
        let above = path.ancestors().skip(1).take_while(|above| above.starts_with(folder));
        above.into_iter().find(|above| above.join("Cargo.toml").is_file()).map_or_else(|| name(folder), name)
    };
    walkdir::WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file() && entry.path().extension().is_some_and(|end| end == "rs"))
        .map(|entry| (entry.path().to_owned(), crate_of(entry.path())))
        .collect()
}

#[derive(Debug, Serialize)]
struct Unparsed {
    file: PathBuf,
    reason: String,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    crates: BTreeMap<String, Counts>,
    total: Counts,
    unparsed: Vec<Unparsed>,
    interrupted: bool,
    workers: usize,
    elapsed_seconds: f64,
}

fn run(files: &[(PathBuf, String)], options: &Options) -> Result<Report, Box<dyn Error>> {
    let start = Instant::now();
    let builder = Pool::builder().memory_limit(options.memory_mib << 20);
    let pool = Arc::new(options.workers.into_iter().fold(builder, PoolBuilder::workers).build()?);
    let interrupted = Arc::new(AtomicBool::new(false));
    let (handlers_pool, handlers_flag) = (Arc::downgrade(&pool), Arc::clone(&interrupted));
    ctrlc::set_handler(move || {
        handlers_flag.store(true, Ordering::Relaxed);
        if let Some(pool) = handlers_pool.upgrade() {
            pool.terminate();
        }
    })?;

    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(files.len() as u64), target);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} files, {eta} left")?);

    let mut report = Report { workers: pool.workers(), ..Report::default() };
    let mut done = vec![false; files.len()];
    let indexed = files.iter().map(|(path, _)| path.clone()).enumerate();
    let each = pool.options().timeout(options.timeout);
    for result in each.imap_unordered(|(index, path)| (index, audit(path)), indexed) {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let (index, counted) = match result {
            Ok(result) => result,
            Err(error) => (error.index, Err(reason(&error.failure))),
        };
        done[index] = true;
        let (path, name) = &files[index];
        let entry = report.crates.entry(name.clone()).or_default();
        match counted {
            Ok(counts) => {
                entry.add(counts);
                report.total.add(counts);
            }
            Err(reason) => report.unparsed.push(Unparsed { file: path.clone(), reason }),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.unparsed.sort_by(|a, b| a.file.cmp(&b.file));
    report.interrupted = interrupted.load(Ordering::Relaxed);
    report.elapsed_seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

fn reason(failure: &Failure) -> String {
    match failure {
        Failure::TimedOut => "exceeded its time limit".to_owned(),
        Failure::OutOfMemory => "exceeded its memory limit".to_owned(),
        Failure::WorkerLost(death) => format!("ended the parser's process: {death}"),
        other => chain(other),
    }
}

/// Returns the text of an error and of each of its sources.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    texts.join(": ")
}

fn print_table(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let width = report.crates.keys().map(String::len).max().unwrap_or(0).max(5);
    let row = |out: &mut dyn Write, name: &str, counts: &Counts| {
        let Counts { files, lines, functions, unsafe_functions, unsafe_blocks, seconds } = counts;
        let time = format!("{:.1?}", Duration::from_secs_f64(*seconds));
        writeln!(
            out,
            "{name:width$} {files:>7} {lines:>9} {functions:>9} {unsafe_functions:>10} {unsafe_blocks:>13} {time:>9}"
        )
    };
    let heads = ["files", "lines", "functions", "unsafe fns", "unsafe blocks", "time"];
    let [files, lines, functions, unsafe_functions, unsafe_blocks, time] = heads;
    writeln!(
        out,
        "{:width$} {files:>7} {lines:>9} {functions:>9} {unsafe_functions:>10} {unsafe_blocks:>13} {time:>9}",
        "crate"
    )?;
    for (name, counts) in &report.crates {
        row(out, name, counts)?;
    }
    row(out, "total", &report.total)?;
    writeln!(out, "\n{} workers, {:.2} s", report.workers, report.elapsed_seconds)?;
    if !report.unparsed.is_empty() {
        writeln!(out, "\n{} files could not be parsed:", report.unparsed.len())?;
    }
    for Unparsed { file, reason } in &report.unparsed {
        writeln!(out, "  {}: {reason}", file.display())?;
    }
    if report.interrupted {
        writeln!(out, "\ninterrupted: this is what was counted so far")?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let options = match parse_options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("unsafe_audit: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if options.help {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if let Some(folder) = options.folder.as_ref().filter(|folder| !folder.is_dir()) {
        eprintln!("unsafe_audit: {} is not a folder", folder.display());
        return ExitCode::from(2);
    }
    let folders = options.folder.clone().map_or_else(default_folders, |folder| vec![folder]);
    let files: Vec<_> = folders.iter().flat_map(|folder| rust_files(folder)).collect();
    if files.is_empty() {
        eprintln!("unsafe_audit: there are no .rs files in {folders:?}");
    }
    let report = match run(&files, &options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("unsafe_audit: {}", chain(&*error));
            return ExitCode::FAILURE;
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let printed = match options.json {
        true => serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from).and_then(|()| writeln!(out)),
        false => print_table(&mut out, &report),
    };
    match printed.and_then(|()| out.flush()) {
        Ok(()) if report.interrupted => ExitCode::from(130),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS, // the reader has closed the pipe
        Err(error) => {
            eprintln!("unsafe_audit: cannot write the report: {error}");
            ExitCode::FAILURE
        }
    }
}
