//! Random numbers that can be had again, and contents made of them.

use crate::lab;

/// splitmix64: small, and the same everywhere.
pub(crate) struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    /// With the seed that `GIT_SEED` names, else one of the clock's, which is printed.
    pub(crate) fn from_environment() -> Self {
        let seed = match std::env::var("GIT_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64,
        };
        println!("GIT_SEED={seed}");
        Self::new(seed)
    }

    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn text(&mut self) -> String {
        let words = [
            "fn",
            "let",
            "}",
            "",
            "// why",
            "return x;",
            "match",
            "	tab",
            "änder",
        ];
        (0..self.below(60))
            .map(|_| format!("{} {}\n", words[self.below(words.len())], self.below(30)))
            .collect()
    }

    pub(crate) fn content(&mut self) -> Vec<u8> {
        let mut content = self.any_content();
        if !content.is_empty() && !lab::scores_last_lines() {
            content.push(b'\n');
        }
        content
    }

    fn any_content(&mut self) -> Vec<u8> {
        match self.below(12) {
            0 => Vec::new(),
            1 => (0..self.below(300))
                .map(|_| self.next() as u8)
                .chain([0])
                .collect(),
            2 => self.text().replace('\n', "\r\n").into_bytes(),
            3 => "long line without end ".repeat(self.below(40)).into_bytes(),
            _ => self.text().into_bytes(),
        }
    }
}
