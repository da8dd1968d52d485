//! What an agent written in Rust is built on: a thin layer over the guest ABI, [`abi`].
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`actor`] | the message and its answer, the log, options, tools, chance and the clock |
//! | [`model`] | models by name, tokens and texts, chat templates |
//! | [`session`] | sequences of tokens whose KV cache and logits lie in this guest's memory |
//! | [`sampling`] | the host's sampler and its settings; the greatest logit |
//! | [`grammar`] | what a text must follow |
//!
//! An agent is a type with the trait [`Agent`]; `isthmus::export!(Type)` exports it. The crate
//! needs no `std`, only an allocator.

#![no_std]
extern crate alloc;

pub mod abi;
pub mod actor;
pub mod grammar;
pub mod model;
pub mod sampling;
pub mod session;

pub use actor::{call_tool, emit, log, option, option_or, reply, Level};
pub use grammar::Grammar;
pub use model::{ChatMessage, Model};
pub use sampling::{argmax, Sampler};
pub use session::Session;

/// An errno of the ABI, such as `abi::ECONTEXT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(pub i32);

pub type Result<T> = core::result::Result<T, Error>;

/// The value that the host returned, or the errno that it negated.
pub(crate) fn checked(result: i32) -> Result<u32> {
    u32::try_from(result).map_err(|_| Error(-result))
}

/// An agent: it is made when the first message comes, and its fields are what it remembers.
pub trait Agent: Sized {
    /// Reads the options and opens models and sessions. After an error the next message tries again.
    fn new() -> Result<Self>;

    /// Handles one message. An error is what the caller receives.
    fn on_message(&mut self, message: &[u8]) -> Result<()>;
}

/// An agent that can go on with another model: it is restored with one whose tokens are others, or
/// after pictures that this one cannot read. `isthmus::export!(Type, on_replay)` exports it.
pub trait Replay: Agent {
    /// The host has closed the sessions, and token ids that were kept mean nothing. Has each session
    /// [`reopen`](Session::reopen); the next message makes them hold what was said.
    fn on_replay(&mut self) -> Result<()>;
}

/// The one agent of a module. WebAssembly without threads runs one call at a time.
#[doc(hidden)]
pub struct Slot<T>(pub core::cell::UnsafeCell<Option<T>>);

unsafe impl<T> Sync for Slot<T> {}

#[doc(hidden)]
pub fn handle<T: Agent>(slot: &'static Slot<T>, nbytes: i32) -> i32 {
    // Safety: the host calls on_message again only after it has returned.
    let agent = unsafe { &mut *slot.0.get() };
    let handled = actor::message(nbytes).and_then(|message| {
        if agent.is_none() {
            *agent = Some(T::new()?);
        }
        agent.as_mut().map_or(Ok(()), |it| it.on_message(&message))
    });
    handled.map_or_else(|error| -error.0, |()| 0)
}

#[doc(hidden)]
pub fn replay<T: Replay>(slot: &'static Slot<T>) -> i32 {
    // Safety: as in `handle`.
    let agent = unsafe { &mut *slot.0.get() };
    agent.as_mut().map_or(Ok(()), T::on_replay).map_or_else(|error| -error.0, |()| 0)
}

/// Exports an agent as `on_message`, which the host calls, and with a second argument `on_replay`.
#[macro_export]
macro_rules! export {
    ($agent:ty) => {
        static AGENT: $crate::Slot<$agent> = $crate::Slot(::core::cell::UnsafeCell::new(None));

        #[no_mangle]
        pub extern "C" fn on_message(nbytes: i32) -> i32 {
            $crate::handle(&AGENT, nbytes)
        }
    };
    ($agent:ty, on_replay) => {
        $crate::export!($agent);

        #[no_mangle]
        pub extern "C" fn on_replay() -> i32 {
            $crate::replay(&AGENT)
        }
    };
}
