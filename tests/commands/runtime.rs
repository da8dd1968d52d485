// What Rust's runtime asks of WASI: arguments, variables, streams, clocks, sleep, random numbers.
use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let name = std::env::var("NAME").unwrap_or_default();
    println!("{} {:?} {}", arguments[0], &arguments[1..], name);
    match arguments.get(1).map(String::as_str) {
        Some("panic") => panic!("on purpose"),
        Some("exit") => std::process::exit(9),
        _ => {}
    }
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(3600));
    println!("slept {} s", start.elapsed().as_secs());
    println!("year {}", 1970 + SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 31_556_952);
    std::thread::yield_now();
    let mut counts: HashMap<String, usize> = HashMap::new();
    let stdin = io::stdin();
    let mut line = String::new();
    stdin.lock().read_line(&mut line).unwrap();
    *counts.entry(line.trim_end().to_string()).or_default() += 1;
    print!("first {} ", counts[line.trim_end()]);
    io::stdout().flush().unwrap();
    let mut rest = Vec::new();
    stdin.lock().read_to_end(&mut rest).unwrap();
    io::stdout().write_all(&rest).unwrap();
    eprintln!("{} bytes", rest.len());
    println!("{}", std::fs::File::open("/etc/passwd").is_err());
}
