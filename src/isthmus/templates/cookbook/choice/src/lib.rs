//! choice: says which of a few answers the model finds most probable. Nothing is drawn.
//!
//! The question is prefilled once. Then each answer's tokens are read after it, and the logarithms of
//! their probabilities are added up. Options: choices=yes|no, report=1 tells what share of the
//! probability of all choices the one that is said has.

use isthmus::{
    abi, log, option, option_or, reply, Agent, ChatMessage, Error, Level, Model, Replay, Result,
    Session,
};

struct Choice {
    session: Session,
    choices: Vec<String>,
    report: bool,
}

/// The logarithm of a token's probability.
fn log_probability(logits: &[f32], token: i32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|it| f64::from(it - most).exp()).sum();
    f64::from(logits[token as usize] - most) - sum.ln()
}

impl Choice {
    /// The logarithm of the probability that the model answers a prompt so.
    fn score(&mut self, prompt: &[i32], answer: &str) -> Result<f64> {
        let mut tokens = prompt.to_vec();
        let mut score = 0.0;
        for token in self.session.model.tokenize(answer, 0)? {
            self.session.become_tokens(&tokens)?; // computes what is new: one token
            score += log_probability(self.session.logits()?, token);
            tokens.push(token);
        }
        Ok(score)
    }
}

impl Agent for Choice {
    fn new() -> Result<Self> {
        let given = option("choices").unwrap_or_else(|| "yes|no".into());
        let choices: Vec<_> = given.split('|').filter(|it| !it.is_empty()).map(String::from).collect();
        if choices.len() < 2 {
            log(Level::Error, "option choices: give at least two answers, such as yes|no")?;
            return Err(Error(abi::EINVAL));
        }
        Ok(Choice {
            session: Session::open_by_option(Model::open_by_option()?)?,
            choices,
            report: option_or("report", 0)? == 1,
        })
    }

    fn on_message(&mut self, message: &[u8]) -> Result<()> {
        let turns = [ChatMessage::new("user", String::from_utf8_lossy(message))];
        let prompt = self.session.model.chat_tokens(&turns)?;
        let mut scores = Vec::new();
        for choice in self.choices.clone() {
            scores.push(self.score(&prompt, &choice)?);
        }
        let mut best = 0;
        for (i, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = i;
            }
        }
        let said = &self.choices[best];
        if self.report {
            let sum: f64 = scores.iter().map(|it| (it - scores[best]).exp()).sum();
            let share = 100.0 / sum;
            return reply(format!("{share:.0} % of {} choices: {said}", scores.len()));
        }
        reply(said)
    }
}

impl Replay for Choice {
    fn on_replay(&mut self) -> Result<()> {
        self.session.reopen()
    }
}

isthmus::export!(Choice, on_replay);
