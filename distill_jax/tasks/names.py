"""First names for generated questions: one list, cut so that no split of a task shares a name with another."""
import zlib

NAMES = tuple('''
Aaron Abby Ada Adam Agnes Aisha Alan Albert Alex Alice Alma Amir Amy Ana Andrew Angela Anita Anna Anton Ariel Arthur Astrid Audrey Axel
Bao Basil Beatrix Bella Benjamin Bernard Bertha Bianca Blake Boris Brenda Brian Bridget Bruno Bryce Caleb Camila Carl Carmen Caroline Cecil
Chad Charles Chen Chloe Chris Clara Claude Clement Connor Cora Craig Cyril Daisy Damian Daniel Daphne David Dawn Dean Deborah Denis Diana Diego
Dmitri Dominik Dora Doris Duncan Dylan Edgar Edith Edmund Eileen Elias Elif Elliot Elmer Elsa Emil Enzo Erik Esther Ethan Eugene Evelyn Ezra
Faith Farid Fatima Felix Fiona Flora Floyd Francis Frank Fred Freya Gabriel Gavin Gemma Georg Gerald Gina Gloria Gordon Grace Greta Gustav
Hanna Harold Harvey Hassan Hazel Hector Heidi Helen Henrik Herman Hilda Hiro Holly Howard Hugo Ian Ida Igor Ines Ingrid Irene Iris Isaac Isak
Jacob Jade James Jana Jared Jasmin Javier Jean Jenny Jerome Jill Joan Joel Johan Jonas Josef Joy Juan Judith Julian June Kai Karen Karl Kavya Keith
Kelly Ken Kevin Kim Kiran Klaus Kofi Kurt Kyle Lara Lars Laura Lech Leila Lena Leon Leslie Levi Liam Linda Lionel Lisa Livia Logan Louis Lucas Lucy
Luis Lukas Lydia Mabel Maja Manuel Marco Margot Marie Mark Martin Mary Matt Maud Maya Megan Mehdi Miguel Milan Mina Miriam Moira Mona Monika Moses
Nadia Nancy Naomi Nathan Neil Nelson Nico Nigel Nils Noah Noel Nora Norman Olaf Olga Oliver Oscar Otto Owen Pablo Patrick Pavel Pearl Pedro Peggy
Penny Peter Petra Philip Phoebe Pierre Piotr Priya Quentin Quinn Rachel Ralph Ramon Rania Raoul Rebecca Regina Rex Ricardo Rita Robert Robin Roger
Roland Ron Rosalind Roxana Ruben Ruth Ryan Sabine Sally Samir Sandra Sean Sergei Seth Sharon Shen Sid Sigrid Silas Simon Sofia Sonja Stan Stella Sunil
Susan Sven Sybil Sylvia Tamar Tanya Tariq Ted Terry Thea Thomas Tilda Tobias Tony Tracy Trent Tyler Ugo Ulrich Ulysses Ursula Uwe Valentin Vera Victor
Vikram Vincent Viola Vivian Vlad Wade Walter Wanda Warren Wei Wendel Wilma Xavier Yara Yasmin Yusuf Yves Zack Zelda Zeno'''.split())


def names_of(split: str) -> tuple[str, ...]:
  """The names of a split: of ten names about six are train's, one is dev's, three are those of the splits test, test_long, ..."""
  buckets = range(6) if split == 'train' else (6,) if split == 'dev' else range(7, 10)
  return tuple(name for name in NAMES if zlib.crc32(name.encode()) % 10 in buckets)
