//! The distribution that sampling draws from, by sorting everything.

/// Parameters as in the sampler, with the history that penalties see.
#[derive(Debug, Clone, Default)]
pub struct SamplingSettings {
    /// Divides the logits.
    pub temperature: f64,
    /// Most likely tokens kept; 0 keeps all.
    pub top_k: usize,
    /// Probability kept.
    pub top_p: f64,
    /// Least probability kept, relative to the most likely token's.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output.
    pub repetition_penalty: f64,
    /// Subtracted once from the logits of tokens in the output.
    pub presence_penalty: f64,
    /// Subtracted for each occurrence in the output.
    pub frequency_penalty: f64,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens generated so far.
    pub output: Vec<u32>,
}

/// The probability of every token.
pub fn probabilities(logits: &[f32], settings: &SamplingSettings) -> Vec<f64> {
    let mut x: Vec<f64> = logits.iter().map(|&v| f64::from(v)).collect();
    for &(id, bias) in &settings.logit_bias {
        x[id as usize] += f64::from(bias);
    }
    for (id, v) in x.iter_mut().enumerate() {
        let count = settings.output.iter().filter(|&&t| t as usize == id).count();
        if count > 0 || settings.prompt.iter().any(|&t| t as usize == id) {
            *v = if *v > 0.0 { *v / settings.repetition_penalty } else { *v * settings.repetition_penalty };
        }
        *v -= settings.frequency_penalty * count as f64;
        *v -= if count > 0 { settings.presence_penalty } else { 0.0 };
    }
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| (x[b] + 0.0).total_cmp(&(x[a] + 0.0)).then(a.cmp(&b)));
    let mut p: Vec<f64> = x.iter().map(|v| ((v - x[order[0]]) / settings.temperature).exp()).collect();
    // In order of rank: min_p, then top_k, then top_p over what these left.
    let mut kept: Vec<usize> = order.into_iter().filter(|&i| p[i] >= settings.min_p).collect();
    if settings.top_k > 0 {
        kept.truncate(settings.top_k);
    }
    let total: f64 = kept.iter().map(|&i| p[i]).sum();
    let mut before = 0.0;
    let mut keep = vec![false; p.len()];
    for &i in &kept {
        keep[i] = before < settings.top_p * total || settings.top_p >= 1.0;
        before += p[i];
    }
    for (p, keep) in p.iter_mut().zip(&keep) {
        *p *= f64::from(u8::from(*keep));
    }
    let total: f64 = p.iter().sum();
    p.iter().map(|p| p / total).collect()
}
