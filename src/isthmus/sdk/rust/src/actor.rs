//! The message and its answer, the log, options, tools, chance and the clock.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::str::FromStr;

use crate::{abi, checked, Error, Result};

#[link(wasm_import_module = "wasi_snapshot_preview1")]
extern "C" {
    fn args_sizes_get(n_args: *mut usize, nbytes: *mut usize) -> i32;
    fn args_get(args: *mut *const u8, bytes: *mut u8) -> i32;
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug = abi::LOG_DEBUG as isize,
    Info = abi::LOG_INFO as isize,
    Warning = abi::LOG_WARNING as isize,
    Error = abi::LOG_ERROR as isize,
}

/// The message, of the length that `on_message` was given.
pub fn message(nbytes: i32) -> Result<Vec<u8>> {
    let mut bytes = vec![0; nbytes as usize];
    checked(unsafe { abi::message_read(bytes.as_mut_ptr(), bytes.len()) })?;
    Ok(bytes)
}

/// Streams a piece of the answer. Pieces may be cut anywhere, also inside a character.
pub fn emit(piece: impl AsRef<[u8]>) -> Result<()> {
    let piece = piece.as_ref();
    checked(unsafe { abi::emit(piece.as_ptr(), piece.len()) }).map(drop)
}

/// Sets the answer, in place of all that was emitted.
pub fn reply(answer: impl AsRef<[u8]>) -> Result<()> {
    let answer = answer.as_ref();
    checked(unsafe { abi::reply(answer.as_ptr(), answer.len()) }).map(drop)
}

/// Writes a line to the actor's log.
pub fn log(level: Level, line: &str) -> Result<()> {
    checked(unsafe { abi::log(level as u32, line.as_ptr(), line.len()) }).map(drop)
}

/// Nanoseconds since 1970 on the actor's virtual clock.
pub fn clock_ns() -> i64 {
    unsafe { abi::clock_ns() }
}

/// Fills a buffer with random bytes from the actor's seed.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    checked(unsafe { abi::random(bytes.as_mut_ptr(), bytes.len()) }).map(drop)
}

/// Calls a function of the host by name. `Error(abi::ENOENT)` if this actor was not given it.
pub fn call_tool(name: &str, args: impl AsRef<[u8]>) -> Result<Vec<u8>> {
    let args = args.as_ref();
    let nbytes = checked(unsafe {
        abi::tool_call(name.as_ptr(), name.len(), args.as_ptr(), args.len())
    })?;
    let mut result = vec![0; nbytes as usize];
    checked(unsafe { abi::tool_result(result.as_mut_ptr(), result.len()) })?;
    Ok(result)
}

/// The value of the option `key=value` that the actor was spawned with; the last one counts.
pub fn option(key: &str) -> Option<String> {
    let text = arguments()?;
    let given = text.split('\0').filter_map(|it| it.strip_prefix(key)?.strip_prefix('='));
    given.last().map(String::from)
}

/// An option as a number or another type, or its default. A value that is none is an error, and
/// the log says so.
pub fn option_or<T: FromStr>(key: &str, default: T) -> Result<T> {
    let text = match option(key) {
        Some(text) => text,
        None => return Ok(default),
    };
    text.parse().map_err(|_| {
        let parts = ["option ", key, " is '", &text, "', which is not of its type"];
        let _ = log(Level::Error, &parts.concat());
        Error(abi::EINVAL)
    })
}

/// All arguments, each with a NUL after it.
fn arguments() -> Option<String> {
    let (mut n_args, mut nbytes) = (0, 0);
    if unsafe { args_sizes_get(&mut n_args, &mut nbytes) } != 0 {
        return None;
    }
    let (mut args, mut bytes) = (vec![core::ptr::null(); n_args], vec![0; nbytes]);
    if unsafe { args_get(args.as_mut_ptr(), bytes.as_mut_ptr()) } != 0 {
        return None;
    }
    String::from_utf8(bytes).ok()
}
