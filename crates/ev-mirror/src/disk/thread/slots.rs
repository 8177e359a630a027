//! Numbers for things under way: small, and given again.

/// A table whose keys fit the ring's tags.
#[derive(Debug)]
pub struct Slots<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self.entries[index(number)] = Some(value);
            return number;
        }
        let number = u32::try_from(self.entries.len()).expect("fewer things under way than 2^32");
        self.entries.push(Some(value));
        number
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.entries.get_mut(index(number)).and_then(Option::as_mut)
    }

    pub fn remove(&mut self, number: u32) -> Option<T> {
        let removed = self.entries.get_mut(index(number)).and_then(Option::take);
        if removed.is_some() {
            self.free.push(number);
        }
        removed
    }

    pub fn numbers(&self) -> Vec<u32> {
        let used = self.entries.iter().enumerate().filter(|(_, entry)| entry.is_some());
        used.map(|(position, _)| u32::try_from(position).expect("as inserted")).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.len() == self.free.len()
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("usize holds 32 bits")
}
