//! Sampling against an oracle that sorts everything, and against the exact distribution.

mod common;

use common::{Random, best, kernels};
use pocketlm_kernels::reference::{SamplingSettings, probabilities};
use pocketlm_kernels::sample::{SampleError, Sampler, SamplingParams};
use proptest::prelude::*;

fn settings(p: &SamplingParams, prompt: &[u32], output: &[u32]) -> SamplingSettings {
    SamplingSettings {
        temperature: f64::from(p.temperature),
        top_k: p.top_k as usize,
        top_p: f64::from(p.top_p),
        min_p: f64::from(p.min_p),
        repetition_penalty: f64::from(p.repetition_penalty),
        presence_penalty: f64::from(p.presence_penalty),
        frequency_penalty: f64::from(p.frequency_penalty),
        logit_bias: p.logit_bias.clone(),
        prompt: prompt.to_vec(),
        output: output.to_vec(),
    }
}

fn sampler(params: &SamplingParams, prompt: &[u32], output: &[u32]) -> Sampler {
    let mut sampler = Sampler::new(params.clone(), prompt).unwrap();
    output.iter().for_each(|&t| sampler.accept(t));
    sampler
}

/// Draws `n` tokens at successive positions and compares their counts with the exact distribution.
fn check_distribution(params: &SamplingParams, logits: &[f32], prompt: &[u32], output: &[u32], n: u32) {
    let exact = probabilities(logits, &settings(params, prompt, output));
    let mut counts = vec![0u32; logits.len()];
    let mut sampler = sampler(params, prompt, output);
    for position in 0..n {
        counts[sampler.sample(best(), logits, u64::from(position)).unwrap().token as usize] += 1;
    }
    let (mut chi, mut cells) = (0.0, 0);
    let (mut rare, mut rare_seen) = (0.0, 0);
    for (id, (&p, &seen)) in exact.iter().zip(&counts).enumerate() {
        assert!(p > 0.0 || seen == 0, "{params:?}: token {id} has no probability");
        let expected = p * f64::from(n);
        if expected >= 8.0 {
            chi += (f64::from(seen) - expected).powi(2) / expected;
            cells += 1;
        } else {
            rare += expected;
            rare_seen += seen;
        }
    }
    if rare >= 8.0 {
        chi += (f64::from(rare_seen) - rare).powi(2) / rare;
        cells += 1;
    }
    let freedom = f64::from((cells - 1).max(1));
    assert!(
        chi < freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0,
        "{params:?}: chi-square {chi}, {freedom} degrees"
    );
}

#[test]
fn frequencies_are_the_exact_probabilities() {
    let mut random = Random(11);
    let base = SamplingParams { seed: 5, ..Default::default() };
    for vocabulary in [1, 2, 50, 65, 1500] {
        let logits = random.normals(vocabulary, 2.0);
        for (i, params) in [
            base.clone(),
            SamplingParams { temperature: 0.5, ..base.clone() },
            SamplingParams { temperature: 3.0, top_k: 7, ..base.clone() },
            SamplingParams { top_p: 0.6, ..base.clone() },
            SamplingParams { temperature: 1.5, top_p: 0.97, ..base.clone() },
            SamplingParams { min_p: 0.05, temperature: 2.0, ..base.clone() },
            SamplingParams { top_k: 40, top_p: 0.8, min_p: 0.02, ..base.clone() },
            SamplingParams { min_p: 0.001, top_p: 0.9, ..base.clone() },
            SamplingParams {
                repetition_penalty: 1.3,
                presence_penalty: 0.7,
                frequency_penalty: 0.4,
                logit_bias: vec![(0, 1.5), (vocabulary as u32 - 1, -2.0)],
                ..base.clone()
            },
        ]
        .into_iter()
        .enumerate()
        {
            let params = SamplingParams { seed: i as u64 * 1000 + vocabulary as u64, ..params };
            let some = |n: usize, random: &mut Random| -> Vec<u32> {
                (0..n).map(|_| random.below(vocabulary) as u32).collect()
            };
            let (prompt, output) = (some(10, &mut random), some(30, &mut random));
            check_distribution(&params, &logits, &prompt, &output, 5_000);
        }
    }
}

#[test]
fn the_same_token_on_every_level_and_in_any_order_of_calls() {
    let mut random = Random(3);
    let logits = random.normals(3001, 3.0);
    let levels = kernels();
    for params in [
        SamplingParams { seed: 1, ..Default::default() },
        SamplingParams { seed: 1, top_p: 0.9, logprobs: Some(4), ..Default::default() },
        SamplingParams { seed: 1, top_k: 50, min_p: 0.01, ..Default::default() },
    ] {
        let mut first = sampler(&params, &[], &[]);
        let forward: Vec<_> = (0..200).map(|p| first.sample(levels[0], &logits, p).unwrap()).collect();
        assert!(forward.iter().any(|s| s.token != forward[0].token));
        for k in &levels {
            let mut other = sampler(&params, &[], &[]);
            for position in (0..200).rev() {
                assert_eq!(other.sample(k, &logits, position).unwrap(), forward[position as usize]);
            }
        }
        let mut seeded = sampler(&SamplingParams { seed: 2, ..params }, &[], &[]);
        assert!(
            (0..200)
                .any(|p| seeded.sample(levels[0], &logits, p).unwrap().token != forward[p as usize].token)
        );
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    for k in kernels() {
        let mut greedy = sampler(&SamplingParams { temperature: 0.0, ..Default::default() }, &[], &[]);
        let mut logits = vec![0.5f32; 300];
        assert_eq!(greedy.sample(k, &logits, 0).unwrap().token, 0);
        logits[70] = 2.0;
        logits[69] = 2.0;
        logits[250] = 2.0;
        assert_eq!(greedy.sample(k, &logits, 9).unwrap().token, 69);
        let mut zeros = vec![-1.0f32; 300];
        (zeros[130], zeros[131]) = (-0.0, 0.0);
        assert_eq!(greedy.sample(k, &zeros, 9).unwrap().token, 130);
        let two = SamplingParams { top_k: 2, ..Default::default() };
        let mut two = sampler(&two, &[], &[]);
        let seen: std::collections::BTreeSet<u32> =
            (0..100).map(|p| two.sample(k, &logits, p).unwrap().token).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [69, 70]);
    }
}

#[test]
fn log_probabilities_are_those_of_the_raw_logits() {
    let mut random = Random(4);
    let logits = random.normals(1000, 3.0);
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let mut order: Vec<u32> = (0..1000).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let params = SamplingParams {
        temperature: 0.2,
        repetition_penalty: 2.0,
        logit_bias: vec![(5, 30.0)],
        logprobs: Some(6),
        ..Default::default()
    };
    let got = sampler(&params, &[order[0]], &[]).sample(best(), &logits, 0).unwrap();
    assert_eq!(got.token, 5);
    let close = |x: f32, id: u32| (f64::from(x) - (f64::from(logits[id as usize]) - sum.ln())).abs() < 1e-5;
    assert!(close(got.logprob.unwrap(), 5));
    assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), order[..6]);
    assert!(got.top.iter().all(|&(id, x)| close(x, id)));
    let alone = SamplingParams { logprobs: Some(0), ..params.clone() };
    let alone = sampler(&alone, &[order[0]], &[]).sample(best(), &logits, 0).unwrap();
    assert!(alone.top.is_empty() && alone.logprob == got.logprob);
    let many = SamplingParams { logprobs: Some(u32::MAX), ..params };
    assert_eq!(sampler(&many, &[], &[]).sample(best(), &logits, 0).unwrap().top.len(), 1000);
}

#[test]
fn what_cannot_be_sampled_is_a_typed_error() {
    let k = best();
    for temperature in [0.0, 1.0] {
        let params = SamplingParams { temperature, ..Default::default() };
        let mut s = sampler(&params, &[], &[]);
        let mut logits = vec![0.0f32; 100];
        logits[77] = f32::NAN;
        assert_eq!(s.sample(k, &logits, 0), Err(SampleError::NotANumber { token: 77 }));
        logits[77] = f32::INFINITY;
        assert_eq!(s.sample(k, &logits, 0), Err(SampleError::Infinite));
        assert_eq!(s.sample(k, &[f32::NEG_INFINITY; 9], 0), Err(SampleError::Empty));
        assert!(matches!(s.sample(k, &[], 0), Err(SampleError::Kernel(_))));
        let bias = SamplingParams { logit_bias: vec![(100, 1.0)], ..params };
        let error = sampler(&bias, &[], &[]).sample(k, &[0.0; 100], 0).unwrap_err();
        assert!(error.to_string().contains("logit_bias") && error.to_string().contains("100"), "{error}");
        // Masked logits are fine, and never chosen.
        let mut masked = vec![f32::NEG_INFINITY; 1000];
        masked[600] = -50.0;
        for position in 0..50 {
            assert_eq!(s.sample(k, &masked, position).unwrap().token, 600);
        }
    }
    // Penalties that no float survives are at fault themselves, not the model.
    for (repetition_penalty, logits) in [(1e-40, [1.0f32; 9]), (f32::MAX, [-2.0; 9])] {
        let params = SamplingParams { repetition_penalty, ..Default::default() };
        let error = sampler(&params, &(0..9).collect::<Vec<_>>(), &[]).sample(k, &logits, 0).unwrap_err();
        assert!(matches!(error, SampleError::Parameter { parameter: "repetition_penalty", .. }), "{error}");
    }
    type Damage = fn(&mut SamplingParams);
    let bad: [(&str, Damage); 12] = [
        ("temperature", |p| p.temperature = f32::NAN),
        ("temperature", |p| p.temperature = -0.1),
        ("temperature", |p| p.temperature = f32::INFINITY),
        ("top_p", |p| p.top_p = 0.0),
        ("top_p", |p| p.top_p = 1.1),
        ("top_p", |p| p.top_p = f32::NAN),
        ("min_p", |p| p.min_p = -0.1),
        ("min_p", |p| p.min_p = f32::NAN),
        ("repetition_penalty", |p| p.repetition_penalty = 0.0),
        ("presence_penalty", |p| p.presence_penalty = 2.1),
        ("frequency_penalty", |p| p.frequency_penalty = f32::NAN),
        ("logit_bias", |p| p.logit_bias = vec![(0, f32::INFINITY)]),
    ];
    for (name, damage) in bad {
        let mut params = SamplingParams::default();
        damage(&mut params);
        let error = Sampler::new(params, &[]).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn extreme_parameters_keep_one_token() {
    let mut random = Random(8);
    let logits = random.normals(2000, 1.0);
    let likeliest = (0..2000u32).max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap();
    for params in [
        SamplingParams { temperature: 2e-5, ..Default::default() },
        SamplingParams { temperature: 1e-30, ..Default::default() },
        SamplingParams { top_p: 1e-30, ..Default::default() },
        SamplingParams { min_p: 1.0, ..Default::default() },
        SamplingParams { top_k: 1, ..Default::default() },
        SamplingParams { top_k: u32::MAX, top_p: 1e-9, ..Default::default() },
    ] {
        let mut s = sampler(&params, &[7, 4_000_000_000], &[]);
        for position in [0, 1, 2, u64::MAX] {
            assert_eq!(s.sample(best(), &logits, position).unwrap().token, likeliest, "{params:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// Every token drawn is one that the oracle keeps, and every token that it keeps with some weight is drawn.
    #[test]
    fn sets_match_the_oracle(
        seed: u64, vocabulary in 1usize..400, grid in prop::bool::ANY, temperature in 0.2f32..3.0,
        top_k in prop_oneof![Just(0u32), 1u32..100], top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.5],
    ) {
        let mut random = Random(seed);
        let mut logits = random.normals(vocabulary, 2.0);
        if grid {
            // Many equal logits.
            logits.iter_mut().for_each(|x| *x = (*x * 2.0).round() / 2.0);
        }
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed, ..Default::default() };
        let exact = probabilities(&logits, &settings(&params, &[], &[]));
        // A hair's breadth decides the last token of `top_p` and `min_p`: accept either side of it.
        let wider = SamplingParams { top_p: (top_p * 1.00001).min(1.0), min_p: min_p * 0.99999, ..params.clone() };
        let allowed = probabilities(&logits, &settings(&wider, &[], &[]));
        let narrower = SamplingParams { top_p: if top_p < 1.0 { top_p * 0.99999 } else { 1.0 }, min_p: (min_p * 1.00001).min(1.0), ..params.clone() };
        let required = probabilities(&logits, &settings(&narrower, &[], &[]));
        let mut sampler = sampler(&params, &[], &[]);
        let mut seen = vec![false; vocabulary];
        for position in 0..500 {
            let token = sampler.sample(best(), &logits, position).unwrap().token as usize;
            prop_assert!(allowed[token] > 0.0, "token {token} was drawn, {params:?}");
            seen[token] = true;
        }
        for (token, &p) in required.iter().enumerate() {
            // Missed by chance once in 10^11.
            prop_assert!(seen[token] || p < 0.05 || exact[token] == 0.0, "token {token} was not drawn, {params:?}");
        }
    }
}
